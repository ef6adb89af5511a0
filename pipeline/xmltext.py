"""XML for other software's files: text that it can hold, and QGIS's heading."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

_NOT_XML = re.compile("[^\t\n\\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_QGIS_TYPE = b"<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n"


def xml_text(text: str) -> str:
    """`text` without the characters that XML cannot hold even when escaped."""
    return _NOT_XML.sub("\ufffd", text)


def xml_bytes(root: ET.Element) -> bytes:
    """The element and all in it, indented, as UTF-8."""
    ET.indent(root)
    return bytes(ET.tostring(root, encoding="utf-8")) + b"\n"


def qgis_root() -> ET.Element:
    """Root of a QGIS layer style that says how a layer is drawn."""
    return ET.Element("qgis", version="3.16", styleCategories="Symbology")


def qgis_bytes(root: ET.Element) -> bytes:
    """A whole QGIS layer style."""
    return _QGIS_TYPE + xml_bytes(root)
