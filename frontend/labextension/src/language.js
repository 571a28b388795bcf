// The language of a %%bpf cell: a line of options, then C, which JupyterLab's own C parser reads.
import {
  HighlightStyle,
  Language,
  LanguageSupport,
  defineLanguageFacet,
  languageDataProp,
  syntaxHighlighting
} from '@codemirror/language';
import { NodeSet, NodeType, Parser, Tree, parseMixed } from '@lezer/common';
import { styleTags, tags } from '@lezer/highlight';

export const MIMETYPE = 'text/x-bpf';

// As IPython finds a cell magic: blank lines before it and its own indentation do not count; %%bpf? asks for help.
const HEADER = /^\s*%%bpf(?= |[^\S\n]*(?:\n|$))[^\n]*\n?/;
const WORD = /%%bpf|"(?:\\.|[^"\\])*"|'[^']*'|(?<=\s)--?[A-Za-z][\w-]*/g;

export function beginsWithBpf(source) {
  return headerLength(source) > 0;
}

function headerLength(source) {
  return HEADER.exec(source)?.[0].length ?? 0;
}

const NODES = ['Cell', 'Head', 'Magic', 'Option', 'String', 'Body'];
const [CELL, HEAD, MAGIC, OPTION, STRING, BODY] = NODES.keys();

// What JupyterLab's own colours leave out of C, in the page's theme.
const COLOURS = syntaxHighlighting(
  HighlightStyle.define([
    { tag: tags.typeName, color: 'var(--jp-mirror-editor-builtin-color)' },
    { tag: tags.escape, color: 'var(--jp-mirror-editor-string-2-color)' }
  ])
);

/** The whole cell, with its C as one node. */
class Outline {
  constructor(types, input) {
    this._types = types;
    this._input = input;
    this.parsedPos = 0;
    this.stoppedAt = null;
  }

  advance() {
    const source = this._input.read(0, this._input.length);
    const length = headerLength(source);
    const found = [...source.slice(0, length).matchAll(WORD)];
    const words = found.map(([word]) => this._node(kindOf(word), word.length));
    const head = this._node(HEAD, length, words, found.map(word => word.index));
    this.parsedPos = source.length;
    return this._node(CELL, source.length, [head, this._node(BODY, source.length - length)], [0, length]);
  }

  stopAt(position) {
    this.stoppedAt = position; // a cell's outline is made in one step: there is nothing to stop
  }

  _node(type, length, children = [], positions = []) {
    return new Tree(this._types[type], children, positions, length);
  }
}

function kindOf(word) {
  if (word.startsWith('%')) return MAGIC;
  return word.startsWith('-') ? OPTION : STRING;
}

class CellParser extends Parser {
  constructor(types, c) {
    super();
    this._types = types;
    this._mixed = parseMixed(node => (node.type === types[BODY] ? { parser: c } : null));
  }

  createParse(input, fragments, ranges) {
    return this._mixed(new Outline(this._types, input), input, fragments, ranges);
  }
}

/** The language, given the parser of C. */
export function cellLanguage(c) {
  // Ctrl-/ from the first line on makes the cell a comment of Python's, and brings it back.
  const data = defineLanguageFacet({ commentTokens: { line: '#' } });
  const types = new NodeSet(NODES.map((name, id) => NodeType.define({ id, name, top: id === CELL }))).extend(
    languageDataProp.add({ Cell: data }),
    styleTags({ Magic: tags.meta, Option: tags.attributeName, String: tags.string })
  ).types;
  return new LanguageSupport(new Language(data, new CellParser(types, c), [], 'bpf'), COLOURS);
}
