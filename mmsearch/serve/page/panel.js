// What is indexed, what was skipped and why, and indexing a folder with live progress.

import * as api from './api.js';
import { h, icon } from './dom.js';
import { bytes, count, moment, t } from './words.js';

export class Panel {
  #events = null;

  /** duplicates: shows those; changed: called when a run has ended, since answers may be others then. */
  constructor(dialog, duplicates, changed) {
    this.dialog = dialog;
    this.duplicates = duplicates;
    this.changed = changed;
    dialog.addEventListener('click', (event) => {
      if (event.target === dialog) dialog.close();
    });
    dialog.addEventListener('close', () => this.#events?.close());
  }

  async show() {
    this.run = h('div', { class: 'run', 'aria-live': 'polite' });
    this.facts = h('div', {});
    this.dialog.replaceChildren(
      h('header', {}, h('h2', { id: 'panel-title' }, t('status')),
        h('button', { type: 'button', class: 'icon', 'aria-label': t('close'), title: t('close'),
          onclick: () => this.dialog.close() }, icon('close'))),
      this.facts);
    if (!this.dialog.open) this.dialog.showModal();
    await this.#fill();
  }

  async #fill() {
    const [status, index] = await Promise.all([api.status(), api.indexState()]);
    this.facts.replaceChildren(facts(status), status.exists ? this.#wayToDuplicates() : '', this.#indexing(index), ...skipped(status.skipped, status.skipped_total));
    this.#showRun(index.run);
    if (index.run?.state === 'running') this.#watch();
  }

  #wayToDuplicates() {
    return h('section', {}, h('h3', {}, t('duplicates')), h('p', { class: 'quiet' }, t('duplicatesHint')),
      h('p', {}, h('button', { type: 'button', class: 'button', onclick: () => {
        this.dialog.close();
        this.duplicates();
      } }, t('duplicatesShow'))));
  }

  #indexing({ allowed }) {
    const section = h('section', {}, h('h3', {}, t('indexTitle')));
    if (!allowed.length) {
      section.append(h('p', {}, t('indexNone')), h('pre', {}, 'mmsearch serve --allow FOLDER'));
    } else {
      const choice = h('select', { 'aria-label': t('indexTitle') }, allowed.map((folder) => h('option', {}, folder)));
      this.start = h('button', { type: 'submit', class: 'button primary' }, t('indexStart'));
      section.append(h('p', { class: 'quiet' }, t('indexHint')),
        h('form', { class: 'line', onsubmit: (event) => {
          event.preventDefault();
          this.#begin(choice.value);
        } }, choice, this.start));
    }
    section.append(this.run);
    return section;
  }

  async #begin(folder) {
    try {
      this.#showRun(await api.startIndex([folder]));
      this.#watch();
    } catch (error) {
      this.run.replaceChildren(h('p', { class: 'wrong' }, t('failed', { why: error.message })));
    }
  }

  #watch() {
    this.#events?.close();
    this.#events = api.indexEvents();
    this.#events.onmessage = async ({ data }) => {
      const run = JSON.parse(data);
      this.#showRun(run);
      if (run.state === 'running') return;
      this.#events.close();
      this.changed();
      if (this.dialog.open) await this.#fill();
    };
  }

  #showRun(run) {
    if (this.start) this.start.disabled = run?.state === 'running';
    if (!run) {
      this.run.replaceChildren();
    } else if (run.state === 'running') {
      if (!this.bar?.isConnected) {
        this.bar = h('progress', { 'aria-label': t('indexTitle') });
        this.said = h('span', { class: 'quiet' });
        this.run.replaceChildren(this.bar, h('p', { class: 'line' }, this.said,
          h('button', { type: 'button', class: 'button', onclick: () => api.cancelIndex() }, t('indexCancel'))));
      }
      if (run.total) {
        this.bar.max = run.total;
        this.bar.value = run.done;
      }
      this.said.textContent = run.total ? [t('indexProgress', run), run.skipped && t('skippedCount', { count: run.skipped })]
        .filter(Boolean).join(' · ') : t('indexStarting');
    } else {
      this.run.replaceChildren(h('p', { class: run.state === 'failed' ? 'wrong' : '' }, ended(run)),
        ...(run.report?.missing ?? []).map((sentence) => h('p', { class: 'wrong' }, sentence)));
    }
  }
}

function ended(run) {
  if (run.state === 'cancelled') return t('indexCancelled');
  if (run.state === 'failed') return t('indexFailed', { why: run.error });
  const { report } = run;
  const counts = ['added', 'changed', 'moved', 'removed', 'unchanged'].filter((name) => report[name])
    .map((name) => t(name, { count: report[name] }));
  if (report.skipped_total) counts.push(t('skippedCount', { count: report.skipped_total }));
  return t('indexDone', { what: counts.join(', ') || t('indexNothing') });
}

function facts(status) {
  if (!status.exists) return h('p', {}, t('emptyIndex'));
  const rows = [
    [t('statusHolds'), [t('images', { count: status.images }), t('passages', { count: status.passages }),
      t('statusCaptions', { count: status.captions })].join(', ')],
    [t('statusModel'), `${status.model} (${count(status.dim)})`],
    [t('statusSize'), bytes(status.size_bytes)],
    [t('statusUpdated'), status.updated_at ? moment(status.updated_at) : t('statusNever')],
    [t('statusSources'), status.roots.join('\n') || '–'],
    [t('statusWhere'), status.folder],
  ];
  return h('dl', {}, rows.map(([name, value]) => h('div', {}, h('dt', {}, name), h('dd', { class: 'path' }, value))));
}

function skipped(files, total) {
  if (!total) return [];
  return [h('details', { class: 'skipped' }, h('summary', {}, t('skippedTitle', { count: total })),
    h('ul', { tabindex: 0 }, files.map((file) => h('li', {}, h('span', { class: 'path' }, file.path), ' ',
      h('span', { class: 'quiet' }, file.reason ?? '')))),
    files.length < total ? h('p', { class: 'quiet' }, t('skippedMore', { count: files.length })) : null)];
}
