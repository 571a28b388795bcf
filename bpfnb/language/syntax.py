"""C's syntax trees, by tree-sitter, and questions that a cell's tree answers: its structs, its names."""

from __future__ import annotations

import re
from collections.abc import Iterator

import tree_sitter
import tree_sitter_c

from bpfnb.language.cell import Cell

__all__ = ["Node", "declared", "floating", "function_declarator", "parse_c", "struct", "walk"]

Node = tree_sitter.Node
_WORD = re.compile(r"\w+", re.ASCII)
_PARSER = tree_sitter.Parser(tree_sitter.Language(tree_sitter_c.language()))


def parse_c(text: str) -> Node:
    """Parse an ASCII text, whose byte offsets are character offsets. Return the root."""
    return _PARSER.parse(text.encode("ascii")).root_node


def walk(node: Node) -> Iterator[Node]:
    """Yield the node and all below it, in the order of the text."""
    todo = [node]
    while todo:
        node = todo.pop()
        yield node
        todo += reversed(node.children)


def function_declarator(node: Node) -> Node | None:
    """Return the declarator with the name and the parameters. It is the innermost: a function may return a pointer."""
    found = [n for n in walk(node) if n.type == "function_declarator" and _named(n)]
    return found[0] if found else None


def _named(node: Node) -> bool:
    name = node.child_by_field_name("declarator")
    return name is not None and name.type == "identifier"


def struct(cell: Cell, name: str) -> tuple[int, list[str]]:
    """Return the line in which the cell declares a struct or union, and its members; (0, []) where it does not."""
    for node in walk(parse_c(cell.masked)):
        tag, body = node.child_by_field_name("name"), node.child_by_field_name("body")
        if node.type in ("struct_specifier", "union_specifier") and body and tag and tag.text == name.encode():
            members = [n for n in walk(body) if n.type == "field_identifier"]
            return cell.place(node.start_byte)[0], [(n.text or b"").decode() for n in members]
    return 0, []


def floating(cell: Cell) -> Iterator[tuple[str, str, int]]:
    """Yield the members of structs that are floating-point numbers: name, type, and the name's offset."""
    root = parse_c(cell.masked)
    types = {"float", "double"}
    for node in walk(root):
        kind, name = node.child_by_field_name("type"), node.child_by_field_name("declarator")
        if not (kind and name and types & set(_WORD.findall((kind.text or b"").decode()))):
            continue
        if node.type == "type_definition":
            types.add((name.text or b"").decode())
        elif node.type == "field_declaration" and (
            named := next((n for n in walk(name) if "identifier" in n.type), None)
        ):
            at = named.start_byte
            yield cell.source[at : named.end_byte], cell.source[kind.start_byte : kind.end_byte], at


def declared(cell: Cell) -> set[str]:
    """Return the names that the cell declares: functions, types, enumerators, variables, parameters, members."""
    names = {f.name for f in cell.functions}
    for node in walk(parse_c(cell.masked)):
        for field in ("declarator", "name"):
            child = node.child_by_field_name(field)
            if child and child.type in ("identifier", "type_identifier", "field_identifier"):
                names.add((child.text or b"").decode())
    return names
