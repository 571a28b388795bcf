// A code cell whose first line is %%bpf is C in the editor: its model gets the mimetype of ./language.js, and gets the
// notebook's own back when its first line changes. Nothing is written into the notebook: a mimetype lives in the page.
import { IEditorLanguageRegistry } from '@jupyterlab/codemirror';
import { INotebookTracker } from '@jupyterlab/notebook';

import { MIMETYPE, beginsWithBpf, cellLanguage } from './language.js';

const PYTHON = ['text/x-python', 'text/x-ipython'];

/** Keeps the mimetypes of one notebook's cells right. */
class Watch {
  constructor(notebook, languages) {
    this._notebook = notebook;
    this._languages = languages;
    this._seen = new WeakSet();
    notebook.modelChanged.connect(() => this._follow());
    this._follow();
  }

  _follow() {
    const cells = this._notebook.model?.cells;
    if (!cells || this._seen.has(cells)) return;
    this._seen.add(cells);
    cells.changed.connect(() => this._look(cells));
    this._look(cells);
  }

  /** Watches the cells that are new: inserted, pasted, moved, split, brought back. */
  _look(cells) {
    for (const cell of cells) {
      if (cell.type !== 'code' || this._seen.has(cell)) continue;
      this._seen.add(cell);
      // JupyterLab sets the mimetype of all cells when a kernel says its language.
      cell.mimeTypeChanged.connect(() => this._set(cell));
      cell.sharedModel.changed.connect((_, change) => change.sourceChange && this._set(cell));
      this._set(cell);
    }
  }

  _wanted(cell) {
    const own = this._notebook.codeMimetype;
    return PYTHON.includes(own) && beginsWithBpf(cell.sharedModel.getSource()) ? MIMETYPE : own;
  }

  async _set(cell) {
    if (cell.mimeType === this._wanted(cell)) return;
    // An editor loads a language before it takes it. With both loaded, the mimetype that is set last is the one taken.
    await Promise.all([MIMETYPE, this._notebook.codeMimetype].map(type => this._languages.getLanguage(type)));
    if (!cell.isDisposed) cell.mimeType = this._wanted(cell);
  }
}

export default {
  id: 'bpfnb:cells',
  description: 'Cells that begin with %%bpf are C in the editor.',
  autoStart: true,
  requires: [INotebookTracker, IEditorLanguageRegistry],
  activate: (_, notebooks, languages) => {
    if (!languages.findByMIME('text/x-csrc')) return;
    languages.addLanguage({
      name: 'bpf',
      displayName: 'BPF C',
      mime: MIMETYPE,
      load: async () => cellLanguage((await languages.getLanguage('text/x-csrc')).support.language.parser)
    });
    const watched = new WeakSet();
    const watch = panel => {
      if (watched.has(panel)) return;
      watched.add(panel);
      new Watch(panel.content, languages);
    };
    notebooks.widgetAdded.connect((_, panel) => watch(panel));
    notebooks.forEach(watch);
  }
};
