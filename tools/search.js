// What ranks the search of the site, in the place of Fuse, whose fuzzy matches found "checkpoint" in "Check it".
// Every word of the question must occur; whole words, headings, lessons and the glossary weigh more.
window.Fuse = class Fuse {
  static PLACES = [[/^(tutorials|glossary)/, 3], [/^(start|script|trouble|index|howto)/, 2.5], [/^(results|limits)/, 1.5], [/^(reference|since_2019)/, .5]]

  constructor(index) {
    this.entries = index.map(item => ({
      item, said: [item.title, item.section, item.text].map(o => o.toLowerCase()), place: (Fuse.PLACES.find(([at]) => at.test(item.href)) || [0, 1])[1],
      fields: [item.title, item.section, item.text].map(o => Fuse.counted(o)) }))
    this.vocabulary = new Set(this.entries.flatMap(o => o.fields.flatMap(field => [...field.keys()])))
  }

  static words(text) { return text.toLowerCase().match(/[\p{L}\p{N}_]+/gu) || [] }

  // How often each word occurs; `plot_top_losses` counts as itself and as its parts.
  static counted(text) {
    const found = new Map()
    for (const word of Fuse.words(text)) for (const o of new Set([word, ...word.split('_')])) found.set(o, (found.get(o) || 0) + 1)
    return found
  }

  // 1 for the word itself, less for its plural and for a word that begins with it (while one types).
  static likeness(asked, word) {
    if (asked === word) return 1
    if (asked + 's' === word || word + 's' === asked) return .8
    return asked.length > 2 && word.startsWith(asked) ? .3 : 0
  }

  // Whether one letter more, less or other makes one word of the other.
  static near(a, b) {
    if (Math.abs(a.length - b.length) > 1 || a.length < 5) return false
    let from = 0, end = 0
    while (from < a.length && a[from] === b[from]) from++
    while (end < Math.min(a.length, b.length) - from && a.at(-1 - end) === b.at(-1 - end)) end++
    return Math.max(a.length, b.length) - from - end <= 1
  }

  static weight(field, asked) {
    let best = 0
    for (const [word, times] of field) { const like = Fuse.likeness(asked, word); if (like) best = Math.max(best, like * (1 + Math.log(times))) }
    return best
  }

  score(entry, words, question) {
    const [title, section] = entry.said, page = section === ''
    const short = Math.min(1, 6 / Fuse.words(section).length) // a long heading names many things
    const each = words.map(asked => {
      const [t, s, x] = entry.fields.map(field => Fuse.weight(field, asked))
      return t * (page ? 10 : 2) + s * 8 * short + x * 2 / (1 + Math.log10(1 + entry.said[2].length / 500))
    })
    if (each.some(o => o === 0)) return 0
    const name = section.split('.').at(-1)
    const whole = (name === question || title === question && page ? 8 : 0) + (words.length > 1 && entry.said.some(o => o.includes(question)) ? 6 : 0)
    return (each.reduce((a, b) => a + b) / words.length + whole) * entry.place
  }

  ranked(words, question) {
    return this.entries.map(entry => ({ item: entry.item, score: this.score(entry, words, question) })).filter(o => o.score > 0).sort((a, b) => b.score - a.score)
  }

  search(question, { limit = 20 } = {}) {
    const words = Fuse.words(question)
    if (!words.length) return []
    let found = this.ranked(words, question.toLowerCase())
    if (!found.length) { // a slip of the pen: the nearest words that the site knows
      const mended = words.map(o => this.vocabulary.has(o) ? o : [...this.vocabulary].find(word => Fuse.near(o, word)) || o)
      found = this.ranked(mended, mended.join(' '))
    }
    return found.slice(0, limit)
  }
}
