// What was said by "more like this" and "less like this", kept for the next training when somebody asks for that.

import * as api from './api.js';
import { h } from './dom.js';
import { t } from './words.js';

const SUM = /(^|\s)[+-]\s|\d\*/; // terms with signs and weights are no words that a model could learn

/** The button for what a state says of some words; null where there is nothing to keep. said: takes a sentence. */
export function keepButton({ q, like, unlike }, said, failed) {
  const words = q.trim();
  if (!words || SUM.test(words) || !(like.length || unlike.length)) return null;
  const button = h('button', { type: 'button', class: 'button', title: t('keepHelp', { words }), onclick: async () => {
    try {
      const { kept } = await api.keepFeedback(words, like, unlike);
      said(t('kept', { count: kept, words }));
    } catch (error) {
      failed(error);
    }
  } }, t('keep'));
  return h('li', { class: 'keep' }, button);
}
