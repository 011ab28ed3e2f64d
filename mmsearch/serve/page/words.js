// Every text of the page. A translation is one more object with the same keys, named by its language.
// {name} is replaced; a text for one and for many is an object with the categories of Intl.PluralRules.

const languages = {
  en: {
    title: 'Search pictures and texts',
    searchLabel: 'What to look for',
    placeholder: 'Describe it, or drop a picture',
    search: 'Search',
    choosePicture: 'Search with a picture',
    chips: 'Pictures in the query',
    filters: 'Filters',
    status: 'What is indexed',
    map: 'Map of the collection',
    mapLabel: 'Map: like lies near like. Arrow keys move it.',
    mapKeys: 'Arrow keys move the map, + and - zoom, 0 shows the whole, Enter opens what is in the middle. What is nearest to the middle is listed below.',
    mapTools: 'Tools of the map',
    mapMaking: 'The map is being made',
    mapMakingHint: 'This is done once; a large collection takes a minute or two.',
    mapUpdating: 'The map is being brought up to date',
    mapFailed: 'The map cannot be made: {why}',
    mapEmpty: 'There is nothing to show on a map yet. Index a folder first.',
    mapInView: '{count} of {total} in view',
    mapSelectView: { one: 'Select it', other: 'Select these {count}' },
    mapTooMany: '{count} are too many to select at once; {most} are the most. Zoom in, or draw a smaller line.',
    mapLasso: 'Select by drawing a line around (or hold Shift)',
    mapNearest: 'Nearest to the middle of the map',
    zoomIn: 'Zoom in',
    zoomOut: 'Zoom out',
    zoomWhole: 'Show the whole map',
    results: 'Results',
    dropHere: 'Drop it to find pictures like it',

    kind: 'Show',
    kindAll: 'Everything',
    kindImage: 'Pictures',
    kindText: 'Texts',
    folder: 'Below the folder',
    folderExample: 'any folder',
    after: 'Taken from',
    before: 'until before',
    near: 'Near a place',
    nearHelp: 'Latitude, longitude and a distance in km, as 48.86, 2.35, 25',
    dateHelp: 'A year, a month or a day, as 2023, 2023-07 or 2023-07-14',
    apply: 'Apply',
    clearFilters: 'Clear',

    found: { one: '{count} result', other: '{count} results' },
    foundMore: 'Best {count} so far; more as you scroll',
    welcome: 'What are you looking for?',
    welcomeHint: 'Describe what is in a picture, in words. Combine with + and -, as in “beach + sunset - people”. Or drop, paste or choose a picture to find others like it.',
    holds: 'In this index: {what}.',
    images: { one: '{count} picture', other: '{count} pictures' },
    passages: { one: '{count} text passage', other: '{count} text passages' },
    keys: 'Keys: / search · arrows move · Enter opens · x selects · Escape closes',
    examples: ['a cat', 'sunset over the sea', 'a red bicycle', 'something to eat'],
    nothing: 'Nothing found',
    nothingFiltered: 'Nothing passes these filters. Clear them, or make them wider.',
    nothingHint: 'Try fewer or other words, or a picture.',
    emptyIndex: 'Nothing is indexed yet',
    emptyHint: 'Choose a folder, and its pictures and texts can be found in a moment.',
    emptyNotAllowed: 'Index a folder on the command line, or start this server with leave to do it from here:',
    loading: 'The model is being loaded. Your search begins by itself.',
    modelFailed: 'The model cannot be loaded.',
    searching: 'Searching …',
    stopped: 'The server does not answer. If it was stopped, start it again:',
    tryAgain: 'Try again',
    tokenTitle: 'This server asks for its token',
    tokenHint: 'It was printed where the server was started.',
    token: 'Token',
    enter: 'Enter',
    tokenWrong: 'This is not the token.',

    more: 'More like this',
    less: 'Less like this',
    likeChip: 'like {name}',
    unlikeChip: 'not like {name}',
    pictureChip: 'like your picture',
    removeChip: 'Remove: {what}',
    keep: 'Keep for training',
    keepHelp: 'Keep what fits “{words}” and what does not, to learn from when heads are trained. No answer changes now.',
    kept: { one: '{count} judgement kept for “{words}”', other: '{count} judgements kept for “{words}”' },
    reading: 'Reading the picture …',
    select: 'Select {name}',
    selectThis: 'Select',
    unselectThis: 'Selected',
    close: 'Close',
    previous: 'Previous result',
    next: 'Next result',
    original: 'Open the file',
    gone: 'The file is not there any more, or cannot be read. Index its folder again to bring the index up to date.',
    goneShort: 'file gone',
    noPicture: 'This item came from memory; there is no file of it.',
    copyPath: 'Copy path',
    copied: 'Copied',
    copyFailed: 'Could not be copied; the path is selected.',
    captions: 'Captions',
    facts: 'Facts',
    factFolder: 'Folder',
    factPath: 'Path',
    factSize: 'Size',
    factTaken: 'Taken',
    factCamera: 'Camera',
    factPlace: 'Place',
    factLine: 'Line',
    factModified: 'File changed',
    onlyFolder: 'Show only this folder',
    onlyNear: 'Show what was taken within 10 km',
    why: 'Why it was found',
    score: 'Closeness {score}',
    scoreHelp: 'Cosine between your query and this item, from −1 to 1. Compare it within one query only.',
    byImage: 'by what the picture shows: number {rank}',
    byText: 'by what its text or caption means: number {rank}',
    byKeyword: 'by a word in its text, caption or name: number {rank}',

    duplicates: 'Duplicates',
    duplicatesShow: 'Look for duplicates',
    duplicatesHint: 'Copies, and the same picture in another size, format, colour, or with its edges cut off. Nothing is deleted here.',
    duplicatesThreshold: 'How alike',
    duplicatesExact: 'Copies to the byte',
    duplicatesStrict: 'Very much alike (0.95)',
    duplicatesUsual: 'The same picture (0.9)',
    duplicatesLoose: 'Almost the same (0.8)',
    duplicatesStart: 'Look',
    duplicatesLooking: 'Comparing what the pictures show …',
    duplicatesProgress: 'Comparing pictures: {done} of {total} read',
    duplicatesFound: { one: '{count} group; {spare} spare, {size}', other: '{count} groups; {spare} spare pictures, {size}' },
    duplicatesSkipped: { one: '{count} picture is left out: its file is gone or has changed. Index its folder again.', other: '{count} pictures are left out: their files are gone or have changed. Index their folders again.' },
    duplicatesNone: 'No two pictures are so much alike.',
    duplicatesGroup: '{count} pictures · {size} to spare',
    duplicatesFirst: 'most pixels',
    duplicatesSame: 'same bytes',
    duplicatesLikeness: 'likeness {score}',
    duplicatesPick: 'Select all but the first of each',
    duplicatesMore: 'Show more',

    selection: 'Selection',
    selected: { one: '{count} selected', other: '{count} selected' },
    savePaths: 'Paths',
    saveJson: 'JSON',
    saveZip: 'Zip',
    clearSelection: 'Clear',
    zipping: 'Packing …',
    failed: 'That did not work: {why}',

    statusModel: 'Model',
    statusHolds: 'Holds',
    statusCaptions: { one: '{count} caption', other: '{count} captions' },
    statusSize: 'On disk',
    statusUpdated: 'Up to date since',
    statusNever: 'no run has ended yet',
    statusSources: 'Put in',
    statusWhere: 'Lies in',
    indexTitle: 'Index a folder',
    indexHint: 'New and changed files are read, moved ones followed, and those that are gone taken out.',
    indexStart: 'Start',
    indexCancel: 'Cancel',
    indexNone: 'No folder may be indexed from here. Start the server with one or more:',
    indexStarting: 'Looking at what is there …',
    indexProgress: '{done} of {total} files',
    indexDone: 'Done: {what}.',
    indexNothing: 'nothing to do',
    indexCancelled: 'Cancelled. What was read is kept; start again to go on.',
    indexFailed: 'It stopped: {why}',
    added: '{count} added',
    changed: '{count} changed',
    moved: '{count} moved',
    removed: '{count} removed',
    unchanged: '{count} unchanged',
    skippedCount: '{count} skipped',
    skippedTitle: { one: '{count} file was skipped', other: '{count} files were skipped' },
    skippedMore: 'The first {count} are listed; mmsearch status lists all.',
  },
};

const wanted = (navigator.languages ?? ['en']).map((tag) => tag.split('-')[0]);
export const language = wanted.find((tag) => tag in languages) ?? 'en';
const texts = languages[language];
const plural = new Intl.PluralRules(language);
const numbers = new Intl.NumberFormat(language);

/** A text by its key, with values put in; `count` chooses between one and many. */
export function t(key, values = {}) {
  let text = texts[key];
  if (typeof text === 'object' && !Array.isArray(text)) text = text[plural.select(values.count)] ?? text.other;
  if (typeof text !== 'string') return text;
  return text.replace(/\{(\w+)\}/g, (_, name) =>
    typeof values[name] === 'number' ? numbers.format(values[name]) : String(values[name] ?? ''));
}

/** Fill in the texts of the page as it was sent. */
export function fillIn(root) {
  document.documentElement.lang = language;
  for (const node of root.querySelectorAll('[data-t]')) node.textContent = t(node.dataset.t);
  for (const node of root.querySelectorAll('[data-t-label]')) {
    node.setAttribute('aria-label', t(node.dataset.tLabel));
    if (node.tagName === 'BUTTON') node.title = t(node.dataset.tLabel);
  }
  for (const node of root.querySelectorAll('[data-t-placeholder]')) node.placeholder = t(node.dataset.tPlaceholder);
  for (const node of root.querySelectorAll('[data-t-title]')) node.title = t(node.dataset.tTitle);
}

/** A size as people say it. */
export function bytes(count) {
  const units = ['byte', 'kilobyte', 'megabyte', 'gigabyte'];
  const place = Math.min(3, Math.max(0, Math.floor(Math.log10(Math.max(count, 1)) / 3)));
  return new Intl.NumberFormat(language, {
    style: 'unit', unit: units[place], unitDisplay: 'short', maximumFractionDigits: place > 1 ? 1 : 0,
  }).format(count / 1000 ** place);
}

/** A moment as people say it; one without an offset is the camera's own clock, and stays what it was. */
export function moment(iso) {
  const date = new Date(iso.length === 10 ? `${iso}T00:00` : iso);
  return Number.isNaN(date.getTime()) ? iso : new Intl.DateTimeFormat(language, {
    dateStyle: 'long', ...(iso.length > 10 ? { timeStyle: 'short' } : {}),
  }).format(date);
}

export const count = (number) => numbers.format(number);
