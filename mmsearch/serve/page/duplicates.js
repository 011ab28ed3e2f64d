// Pictures that are one: asked for, watched while they are looked for, shown as groups to choose from.

import * as api from './api.js';
import { h, icon, nameOf } from './dom.js';
import { bytes, t } from './words.js';

const WAIT = 400; // ms between two looks at the work
const PAGE = 40; // groups
const PICKED = 500; // groups that are asked for at once to select from
const THRESHOLDS = { 1: 'duplicatesExact', 0.95: 'duplicatesStrict', 0.9: 'duplicatesUsual', 0.8: 'duplicatesLoose' };

export class DuplicatesView {
  #shown = false;
  #asking = 0; // grows with each look at the server, so that a late answer is not taken for a new one
  #copies = new Map(); // id -> copy

  /** actions: open(id), address(id), select(copies), toggle(copy), selected(id), failed(error). */
  constructor(section, actions) {
    this.section = section;
    this.actions = actions;
    this.choice = h('select', { id: 'threshold', 'aria-label': t('duplicatesThreshold') },
      Object.entries(THRESHOLDS).sort(([one], [other]) => other - one)
        .map(([value, text]) => h('option', { value, selected: value === '0.9' }, t(text))));
    this.start = h('button', { type: 'submit', class: 'button primary' }, t('duplicatesStart'));
    this.said = h('p', { role: 'status' });
    this.bar = h('progress', { 'aria-label': t('duplicates'), hidden: true });
    this.groups = h('ul', { class: 'groups', 'aria-label': t('duplicates') });
    this.pick = h('button', { type: 'button', class: 'button', hidden: true, onclick: () => this.#pickSpares() },
      icon('check'), t('duplicatesPick'));
    this.more = h('button', { type: 'button', class: 'button', hidden: true, onclick: () => this.#fill(this.cursor) },
      t('duplicatesMore'));
    section.append(h('h2', {}, t('duplicates')), h('p', { class: 'quiet' }, t('duplicatesHint')),
      h('form', { class: 'line', onsubmit: (event) => {
        event.preventDefault();
        this.#begin();
      } }, this.choice, this.start, this.pick), this.bar, this.said, this.groups, this.more);
    section.addEventListener('click', (event) => {
      const link = event.target.closest('.open');
      if (!link || event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
      event.preventDefault();
      actions.open(link.closest('.tile').dataset.id);
    });
  }

  show(is) {
    if (is === this.#shown) return;
    this.#shown = is;
    this.section.hidden = !is;
    this.#asking += 1;
    if (is) this.#watch();
  }

  /** The copy of an id, if it is listed. */
  copy(id) { return this.#copies.get(id); }

  focus(id) { (this.section.querySelector(`[data-id="${CSS.escape(id ?? '')}"] .open`) ?? this.choice).focus(); }

  refreshSelection() {
    for (const tile of this.groups.querySelectorAll('.tile')) this.#mark(tile);
  }

  async #begin() {
    try {
      await api.findDuplicates(Number(this.choice.value));
      await this.#watch();
    } catch (error) {
      this.actions.failed(error);
    }
  }

  /** Look at the work until it has ended, and show what it found. */
  async #watch() {
    const mine = this.#asking += 1;
    try {
      let found = await api.duplicates(1);
      while (found.state === 'running' && mine === this.#asking) {
        this.#showWork(found);
        await new Promise((done) => { setTimeout(done, WAIT); });
        found = await api.duplicates(1);
      }
      if (mine !== this.#asking) return;
      this.bar.hidden = true;
      this.start.disabled = false;
      if (found.threshold && found.threshold in THRESHOLDS) this.choice.value = String(found.threshold);
      this.#clear();
      if (found.state === 'failed') this.said.textContent = t('failed', { why: found.error });
      else if (found.state === 'done') await this.#fill(null);
      else this.said.textContent = '';
    } catch (error) {
      this.actions.failed(error);
    }
  }

  #showWork({ done, total }) {
    this.#clear();
    this.start.disabled = true;
    this.bar.hidden = false;
    if (total) [this.bar.max, this.bar.value] = [total, done];
    else this.bar.removeAttribute('value');
    this.said.textContent = total ? t('duplicatesProgress', { done, total }) : t('duplicatesLooking');
  }

  #clear() {
    this.#copies.clear();
    this.groups.replaceChildren();
    this.pick.hidden = this.more.hidden = true;
  }

  async #fill(cursor) {
    const mine = this.#asking;
    try {
      const found = await api.duplicates(PAGE, cursor);
      if (mine !== this.#asking) return;
      this.cursor = found.cursor;
      for (const group of found.groups) this.groups.append(this.#group(group));
      this.pick.hidden = !found.spare_total;
      this.more.hidden = !found.cursor;
      this.said.textContent = found.groups_total
        ? t('duplicatesFound', { count: found.groups_total, spare: found.spare_total, size: bytes(found.spare_bytes) })
        : t('duplicatesNone');
      if (found.skipped) this.said.append(' ', t('duplicatesSkipped', { count: found.skipped }));
    } catch (error) {
      this.actions.failed(error);
    }
  }

  /** Select all but the first of every group, also of those that are not listed yet. */
  async #pickSpares() {
    const mine = this.#asking;
    this.pick.disabled = true;
    try {
      const spares = [];
      let cursor = null;
      do {
        const found = await api.duplicates(PICKED, cursor);
        if (mine !== this.#asking) return;
        for (const { copies } of found.groups) spares.push(...copies.slice(1));
        cursor = found.cursor;
      } while (cursor);
      this.actions.select(spares);
    } catch (error) {
      this.actions.failed(error);
    } finally {
      this.pick.disabled = false;
    }
  }

  #group({ copies, spare_bytes: spare }) {
    for (const copy of copies) this.#copies.set(copy.id, copy);
    return h('li', {}, h('h3', {}, t('duplicatesGroup', { count: copies.length, size: bytes(spare) })),
      h('ul', { class: 'versions' }, copies.map((copy, place) => this.#tile(copy, place))));
  }

  #tile(copy, place) {
    const name = nameOf(copy);
    const like = place === 0 ? t('duplicatesFirst')
      : copy.is_exact ? t('duplicatesSame') : t('duplicatesLikeness', { score: copy.likeness.toFixed(2) });
    const image = copy.path ? h('img', { class: 'whole', alt: '', loading: 'lazy', decoding: 'async', src: api.thumbnail(copy.id, 320) })
      : h('span', { class: 'missing' }, copy.id);
    image.addEventListener('load', () => image.classList.add('there'), { once: true });
    image.addEventListener('error', () => image.replaceWith(h('span', { class: 'missing' }, t('goneShort'))), { once: true });
    const facts = [copy.width && `${copy.width} × ${copy.height}`, copy.size_bytes && bytes(copy.size_bytes)];
    const tile = h('li', { class: 'tile version', 'data-id': copy.id, title: copy.path ?? copy.id },
      h('a', { class: 'open', href: this.actions.address(copy.id), 'aria-label': `${name}, ${like}` }, image),
      h('button', { class: 'tick', type: 'button', role: 'checkbox', 'aria-label': t('select', { name }),
        onclick: () => this.actions.toggle(copy) }, icon('check')),
      h('span', { class: 'name', dir: 'auto' }, name),
      h('span', { class: 'quiet' }, like), h('span', { class: 'quiet' }, facts.filter(Boolean).join(' · ')));
    this.#mark(tile);
    return tile;
  }

  #mark(tile) {
    const is = this.actions.selected(tile.dataset.id);
    tile.classList.toggle('selected', is);
    tile.querySelector('.tick').setAttribute('aria-checked', String(is));
  }
}
