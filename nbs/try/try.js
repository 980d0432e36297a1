// From the bytes of a picture to an answer, as `malaria_fastai.predict.Predictor` gives it, and the page around it. Nothing leaves the page.
// All limits, thresholds and parameters come from model/model.json. What is computed follows predict.py, name by name.

// ---- pictures: bytes → {w, h, rgb}, as `open_picture` reads them

export class BadPicture extends Error {}

const starts = (b, ...head) => head.every((v, i) => b[i] === v)
const text = (b, from, n) => String.fromCharCode(...b.subarray(from, from + n))
const KNOWN = {'GIF8': 'a GIF', 'RIFF': 'a WebP or another RIFF file', 'PK\x03\x04': 'a zip archive', '%PDF': 'a PDF', '<': 'a web page or another text'}

export async function openPicture(bytes, limits) {
  if (!bytes.length) throw new BadPicture('the file is empty')
  if (bytes.length > limits.max_bytes) throw new BadPicture(`more than ${limits.max_bytes >> 20} MB are too many for a picture`)
  if (starts(bytes, 0x89, 0x50, 0x4e, 0x47, 13, 10, 26, 10)) return readPng(bytes, limits)
  if (starts(bytes, 0xff, 0xd8, 0xff)) return byBrowser(bytes, 'image/jpeg', jpegSize(bytes), limits)
  if (starts(bytes, 0x42, 0x4d)) return byBrowser(bytes, 'image/bmp', bmpSize(bytes), limits)
  if (starts(bytes, 0x49, 0x49, 42, 0) || starts(bytes, 0x4d, 0x4d, 0, 42)) throw new BadPicture('it is a TIFF, which browsers cannot read; save it as PNG, or use the library')
  const head = text(bytes, 0, 64).trimStart(), what = Object.keys(KNOWN).find(k => head.startsWith(k))
  throw new BadPicture(`${what ? `it is ${KNOWN[what]}` : 'the content is no picture'}; expected PNG, JPEG or BMP`)
}

function checkPixels(w, h, limits) {
  if (!(w > 0 && h > 0)) throw new BadPicture('it does not decode: it says that it has no pixels')
  if (w*h > limits.max_pixels) throw new BadPicture(`${w} x ${h} pixels are more than ${limits.max_pixels.toLocaleString('en')}`)
}

// PNG is decoded here, and not by the browser, which would apply colour profiles and lose colours under transparency.
const CRC = Uint32Array.from({length: 256}, (_, n) => { for (let k = 0; k < 8; k++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1; return n })
function crc32(b) {
  let c = -1
  for (const v of b) c = CRC[(c ^ v) & 255] ^ (c >>> 8)
  return ~c >>> 0
}

function pngChunks(b) {
  const view = new DataView(b.buffer, b.byteOffset, b.length), chunks = []
  for (let at = 8, kind = ''; kind !== 'IEND';) {
    const n = at + 8 <= b.length ? view.getUint32(at) : b.length, end = at + 8 + n
    if (end + 4 > b.length) throw new BadPicture('truncated: the end of the picture is missing')
    if (crc32(b.subarray(at + 4, end)) !== view.getUint32(end)) throw new BadPicture('damaged: a checksum in the file is wrong')
    kind = text(b, at + 4, 4)
    chunks.push({kind, data: b.subarray(at + 8, end)})
    at = end + 4
  }
  return chunks
}

async function inflate(parts, size) {
  const reader = new Blob(parts).stream().pipeThrough(new DecompressionStream('deflate')).getReader(), out = new Uint8Array(size)
  let n = 0
  try {
    for (let part; n < size && !(part = await reader.read()).done;) {
      const some = part.value.subarray(0, size - n)
      out.set(some, n)
      n += some.length
    }
  } catch (e) { throw new BadPicture('it does not decode: its compressed data are damaged') }
  reader.cancel().catch(() => {})
  if (n < size) throw new BadPicture('it does not decode: pixels are missing')
  return out
}

const CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}, DEPTHS = {0: [1, 2, 4, 8, 16], 2: [8, 16], 3: [1, 2, 4, 8], 4: [8, 16], 6: [8, 16]}
const ADAM7 = [[0, 0, 8, 8], [4, 0, 8, 8], [0, 4, 4, 8], [2, 0, 4, 4], [0, 2, 2, 4], [1, 0, 2, 2], [0, 1, 1, 2]] // x, y of the first pixel, steps

function unfilter(raw, at, row, rows, bpp) {
  for (let y = 0; y < rows; y++, at += row + 1) {
    const kind = raw[at], x = raw.subarray(at + 1, at + 1 + row), up = y ? raw.subarray(at - row, at) : new Uint8Array(row)
    if (kind > 4) throw new BadPicture('it does not decode: an unknown filter')
    for (let i = 0; kind && i < row; i++) {
      const a = i < bpp ? 0 : x[i - bpp], b = up[i], c = i < bpp ? 0 : up[i - bpp]
      x[i] += kind === 1 ? a : kind === 2 ? b : kind === 3 ? (a + b) >> 1 : paeth(a, b, c)
    }
  }
  return at
}
function paeth(a, b, c) {
  const pa = Math.abs(b - c), pb = Math.abs(a - c), pc = Math.abs(a + b - 2*c)
  return pa <= pb && pa <= pc ? a : pb <= pc ? b : c
}

async function readPng(b, limits) {
  const chunks = pngChunks(b), find = kind => chunks.find(o => o.kind === kind)?.data, head = find('IHDR')
  if (!head || head.length < 13) throw new BadPicture('damaged near its beginning')
  const view = new DataView(head.buffer, head.byteOffset), w = view.getUint32(0), h = view.getUint32(4), [depth, type, , , interlaced] = head.subarray(8)
  if (!DEPTHS[type]?.includes(depth)) throw new BadPicture('it does not decode: an unknown kind of PNG')
  checkPixels(w, h, limits)
  const frames = find('acTL')
  if (frames && new DataView(frames.buffer, frames.byteOffset).getUint32(0) > 1) throw new BadPicture('animated or paged: several pictures in one file')
  const bits = depth*CHANNELS[type], passes = (interlaced ? ADAM7 : [[0, 0, 1, 1]]).map(([x, y, dx, dy]) => ({x, y, dx, dy, cols: Math.ceil((w - x)/dx), rows: Math.ceil((h - y)/dy)}))
    .filter(o => o.cols > 0 && o.rows > 0).map(o => ({...o, row: Math.ceil(o.cols*bits/8)}))
  const raw = await inflate(chunks.filter(o => o.kind === 'IDAT').map(o => o.data), passes.reduce((n, o) => n + (o.row + 1)*o.rows, 0))
  const paint = painter(type, depth, find('PLTE'), find('tRNS')), rgb = new Uint8Array(w*h*3)
  let at = 0
  for (const p of passes) {
    const from = at
    at = unfilter(raw, at, p.row, p.rows, Math.max(1, bits >> 3))
    for (let j = 0; j < p.rows; j++) for (let i = 0; i < p.cols; i++) paint(raw, from + j*(p.row + 1) + 1, i, rgb, ((p.y + j*p.dy)*w + p.x + i*p.dx)*3)
  }
  return upright({w, h, rgb}, orientation(find('eXIf')))
}

// How one pixel becomes 8-bit RGB as Pillow makes it: 16-bit grey by /257, other 16-bit colours by their upper half, transparent parts on black.
function painter(type, depth, palette, transparent) {
  const n = CHANNELS[type], wide = depth === 16, scale = type === 0 && depth < 8 ? 255/(2**depth - 1) : 1
  const t16 = i => transparent[2*i]*256 + transparent[2*i + 1], mask = (1 << Math.min(depth, 8)) - 1
  if (type === 3 && !palette) throw new BadPicture('it does not decode: its palette is missing')
  if (type === 2 && wide && transparent) throw new BadPicture('16-bit colour with a transparent colour; save it with 8 bits')
  const value = (raw, at, i) => wide ? raw[at + 2*i] : depth === 8 ? raw[at + i] : (raw[at + (i*depth >> 3)] >> (8 - depth - (i*depth & 7))) & mask
  const alpha = transparent && type === 0 && !wide ? v => v[0] === t16(0) ? 0 : 255 : transparent && type === 2 ? v => v.every((o, k) => o === t16(k)) ? 0 : 255 : () => 255
  return (raw, at, i, out, to) => {
    let v, a = 255
    if (type === 3) {
      const k = value(raw, at, i)
      v = [palette[3*k] ?? 0, palette[3*k + 1] ?? 0, palette[3*k + 2] ?? 0]
      a = transparent?.[k] ?? 255
    } else if (type === 0 && wide) v = [(raw[at + 2*i]*256 + raw[at + 2*i + 1] + 128)/257 | 0]
    else {
      v = []
      for (let k = 0; k < n; k++) v.push(value(raw, at, i*n + k)*scale)
      a = type === 4 || type === 6 ? v.pop() : alpha(v)
    }
    for (let k = 0; k < 3; k++) out[to + k] = onBlack(v.length === 1 ? v[0] : v[k], a)
  }
}
function onBlack(v, a) { // Pillow's alpha_composite, in its integers
  if (a === 255) return v
  const t = v*a*128 + 16384
  return a ? ((t >> 8) + t >> 8) >> 7 : 0
}

function orientation(exif) {
  if (!exif || exif.length < 8) return 1
  const little = exif[0] === 0x49, view = new DataView(exif.buffer, exif.byteOffset, exif.length), at = view.getUint32(4, little)
  if (at + 2 > exif.length) return 1
  for (let i = 0, o = at + 2; i < view.getUint16(at, little) && o + 12 <= exif.length; i++, o += 12) if (view.getUint16(o, little) === 0x112) return view.getUint16(o + 8, little)
  return 1
}
function upright(im, how) {
  const {w, h, rgb} = im
  if (!(how > 1 && how < 9)) return im
  const [W, H] = how > 4 ? [h, w] : [w, h], out = new Uint8Array(rgb.length)
  const from = [, , (x, y) => [w - 1 - x, y], (x, y) => [w - 1 - x, h - 1 - y], (x, y) => [x, h - 1 - y], (x, y) => [y, x], (x, y) => [y, h - 1 - x],
    (x, y) => [w - 1 - y, h - 1 - x], (x, y) => [w - 1 - y, x]][how]
  for (let y = 0; y < H; y++) for (let x = 0; x < W; x++) {
    const [i, j] = from(x, y)
    for (let k = 0; k < 3; k++) out[(y*W + x)*3 + k] = rgb[(j*w + i)*3 + k]
  }
  return {w: W, h: H, rgb: out}
}

// JPEG and BMP: the browser decodes, told to leave colours alone. Sizes are read before, so that nothing huge is decoded.
function jpegSize(b) {
  let size = null
  for (let at = 2; at + 9 < b.length;) {
    if (b[at] !== 0xff) { at++; continue }
    const kind = b[at + 1]
    if (kind === 0xff) { at++; continue }
    if (kind === 0xd9) break
    if (kind === 0 || kind === 1 || (kind >= 0xd0 && kind <= 0xd8)) { at += 2; continue }
    const n = b[at + 2]*256 + b[at + 3]
    if (kind >= 0xc0 && kind <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(kind)) size ??= [b[at + 7]*256 + b[at + 8], b[at + 5]*256 + b[at + 6], b[at + 9]]
    at += 2 + n
  }
  if (!size) throw new BadPicture('damaged near its beginning')
  if (size[2] === 4) throw new BadPicture('its colours are those of a printer (CMYK); save it as RGB')
  let end = b.length
  while (end > 2 && b[end - 1] === 0) end--
  if (!(b[end - 2] === 0xff && b[end - 1] === 0xd9) && text(b, Math.max(0, b.length - 4096), Math.min(4096, b.length)).lastIndexOf('\xff\xd9') < 0)
    throw new BadPicture('truncated: the end of the picture is missing')
  return size
}
function bmpSize(b) {
  const view = new DataView(b.buffer, b.byteOffset, b.length)
  if (b.length < 26) throw new BadPicture('damaged near its beginning')
  return view.getUint32(14, true) === 12 ? [view.getUint16(18, true), view.getUint16(20, true)] : [view.getInt32(18, true), Math.abs(view.getInt32(22, true))]
}
async function byBrowser(bytes, type, [w, h], limits) {
  checkPixels(w, h, limits)
  let im
  try { im = await createImageBitmap(new Blob([bytes], {type}), {colorSpaceConversion: 'none', premultiplyAlpha: 'none', imageOrientation: 'from-image'}) }
  catch (e) { throw new BadPicture('it does not decode') }
  const canvas = Object.assign(document.createElement('canvas'), {width: im.width, height: im.height}), pen = canvas.getContext('2d', {willReadFrequently: true})
  pen.drawImage(im, 0, 0)
  const {data} = pen.getImageData(0, 0, im.width, im.height), rgb = new Uint8Array(im.width*im.height*3)
  for (let i = 0, j = 0; i < data.length; i += 4) {
    if (data[i + 3] !== 255) throw new BadPicture('it has transparent parts; save it as PNG')
    rgb[j++] = data[i]; rgb[j++] = data[i + 1]; rgb[j++] = data[i + 2]
  }
  return {w: im.width, h: im.height, rgb}
}

// ---- resizing: Pillow's bilinear filter, its support widened when a picture shrinks, in Pillow's integers

const PRECISION = 22 // bits after the point: Pillow's 32 - 8 - 2

function weights(from, to) {
  const scale = from/to, wide = Math.max(scale, 1), narrow = 1/wide
  return Array.from({length: to}, (_, i) => {
    const centre = (i + .5)*scale, first = Math.max(0, Math.trunc(centre - wide + .5)), last = Math.min(from, Math.trunc(centre + wide + .5))
    const k = Array.from({length: last - first}, (_, j) => Math.max(0, 1 - Math.abs((j + first - centre + .5)*narrow))), sum = k.reduce((a, b) => a + b, 0)
    return {first, k: k.map(o => Math.trunc(.5 + o/sum*2**PRECISION))}
  })
}
function along(src, from, to, step, lines, stride, newStep, newStride, dst) { // one direction: `lines` rows or columns of three colours
  weights(from, to).forEach(({first, k}, i) => {
    for (let l = 0; l < lines; l++) for (let c = 0; c < 3; c++) {
      let sum = 2**(PRECISION - 1)
      for (let j = 0, at = l*stride + first*step + c; j < k.length; j++, at += step) sum += src[at]*k[j]
      dst[l*newStride + i*newStep + c] = sum >> PRECISION
    }
  })
  return dst
}
export function resize({w, h, rgb}, W, H) {
  const across = () => { if (w !== W) { rgb = along(rgb, w, W, 3, h, 3*w, 3, 3*W, new Uint8Array(W*h*3)); w = W } }
  const down = () => { if (h !== H) { rgb = along(rgb, h, H, 3*w, w, 3, 3*w, 3, new Uint8Array(w*H*3)); h = H } }
  const order = h > H && 2*w*H < W*(h + H) ? [down, across] : [across, down] // Pillow 13 begins where it saves most; older ones across. It changes a value by one, at most.
  for (const go of order) go()
  return {w: W, h: H, rgb}
}

// ---- the content check: `appearance` and `ContentCheck`

const DEEP = 4 // as `_DEEP`
const mean = a => a.reduce((s, v) => s + v, 0)/a.length
const sd = a => { const m = mean(a); return Math.sqrt(a.reduce((s, v) => s + (v - m)**2, 0)/a.length) }

function insideOf(seen, n) { // what is farther than DEEP pixels from anything black, and from the border
  const shrunk = (mask, step) => mask.map((_, i) => {
    const at = step === 1 ? i % n : Math.floor(i/n)
    if (at < DEEP || at >= n - DEEP) return 0
    for (let k = -DEEP; k <= DEEP; k++) if (!mask[i + k*step]) return 0
    return 1
  })
  return shrunk(shrunk(seen, 1), n)
}

export function appearance(im, {side: n, dark}) { // Name of a number → its value; null where there is next to nothing but black
  const {rgb} = resize(im, n, n), seen = Uint8Array.from({length: n*n}, (_, i) => Math.max(...rgb.subarray(3*i, 3*i + 3)) > dark)
  const inside = insideOf(seen, n), places = [...inside.keys()].filter(i => inside[i])
  if (places.length < 50) return null
  const light = Float32Array.from(seen, (_, i) => mean(rgb.subarray(3*i, 3*i + 3))), v = places.map(i => light[i])
  const beside = k => places.map(i => Math.log(rgb[3*i + k] + 8) - Math.log(rgb[3*i + 1] + 8)), red = beside(0), blue = beside(2) // beside green
  const steps = places.map(i => Math.abs(light[i] - light[i - n]) + Math.abs(light[i] - light[i - 1]))
  const border = Array.from({length: n}, (_, i) => [i, n*n - n + i, i*n, i*n + n - 1]).flat()
  return {cover: mean(seen), border: mean(border.map(i => seen[i])), light: mean(v), red: mean(red), blue: mean(blue), red_sd: Math.log(sd(red) + .005),
    blue_sd: Math.log(sd(blue) + .005), spread: Math.log(sd(v) + .3), edge: Math.log(mean(steps) + .1), edge_sd: Math.log(sd(steps) + .1)}
}

export function refusal(numbers, check) { // why a picture is not like the training cells; '' if it is
  if (!numbers) return 'next to nothing but black'
  for (const [k, [lo, hi]] of Object.entries(check.frame)) if (!(numbers[k] >= lo && numbers[k] <= hi))
    return `not one cell cut out on black: ${k} is ${numbers[k].toFixed(2)}, allowed ${Math.max(lo, 0).toFixed(2)} to ${Math.min(hi, 1).toFixed(2)}`
  const z = check.names.map((k, i) => (numbers[k] - check.mean[i])/check.sd[i])
  const distance = Math.sqrt(Math.abs(z.reduce((s, a, i) => s + a*z.reduce((t, b, j) => t + check.inverse[i][j]*b, 0), 0)))
  if (distance <= check.far) return ''
  const i = z.reduce((best, v, k) => Math.abs(v) > Math.abs(z[best]) ? k : best, 0)
  return `unlike the training cells: distance ${distance.toFixed(0)}, allowed ${check.far.toFixed(0)}; most of all ${check.names[i]}, ${z[i] < 0 ? '' : '+'}${z[i].toFixed(0)} deviations`
}

// ---- the model: model.json, the network, and the decision

const HERE = new URL('.', import.meta.url)
const hex = b => [...new Uint8Array(b)].map(v => v.toString(16).padStart(2, '0')).join('')
async function fetched(name) {
  const r = await fetch(new URL(name, HERE))
  if (!r.ok) throw new Error(`${name} is missing (${r.status}): build the site again`)
  return r
}
export const fetchDescription = async () => (await fetched('model/model.json')).json()

export class Predictor {
  static async load(said) {
    const one = Object.assign(new Predictor(), {said}), [name, {file}] = Object.entries(said.files).find(([k]) => k.endsWith('.onnx'))
    const ort = await import(new URL('ort/ort.wasm.bundle.min.mjs', HERE)), network = await (await fetched(`model/${name}`)).arrayBuffer()
    if (crypto.subtle && hex(await crypto.subtle.digest('SHA-256', network)) !== file.sha256) throw new Error(`${name} is not what model.json says: build the site again`)
    if (said.resize.method !== 'SQUISH') throw new Error(`this page cannot resize by ${said.resize.method}`)
    ort.env.wasm.wasmPaths = {wasm: new URL('ort/ort-wasm-simd-threaded.wasm', HERE).href}
    ort.env.wasm.numThreads = 1
    Object.assign(one, {ort, session: await ort.InferenceSession.create(network)})
    await one.test(said.test_vector, said.files[name].test_logits)
    return one
  }

  async test({png, pixel_sum, numbers}, logits) { // a browser that computes something else must not answer
    const im = await openPicture(Uint8Array.from(atob(png), c => c.charCodeAt(0)), this.said.limits), x = this.prepared(im), here = appearance(im, this.said.limits)
    const off = [x.reduce((a, b) => a + b, 0) !== pixel_sum && 'pixels', Object.entries(numbers).some(([k, v]) => !(Math.abs(here[k] - v) < 1e-3)) && 'numbers',
      (await this.ask(x)).logits.some((v, i) => !(Math.abs(v - logits[i]) < .05)) && 'answers of the network'].filter(Boolean)
    if (off.length) throw new Error(`in this browser the ${off.join(' and ')} of the test picture are not what they must be`)
  }

  prepared(im) { const [h, w] = this.said.resize.size; return resize(im, w, h).rgb }

  async ask(x) { // pixels → logits, and the map of each class
    const [h, w] = this.said.resize.size, out = await this.session.run({pictures: new this.ort.Tensor('uint8', x, [1, h, w, 3])})
    return {logits: [...out.logits.data], maps: out.maps}
  }

  async answer(bytes) { // label, p, decision, reason as in the library; im and map to look at
    const {said} = this
    let im
    try { im = await openPicture(bytes, said.limits) }
    catch (e) {
      if (!(e instanceof BadPicture)) throw e
      return {label: '', p: NaN, decision: said.refused_as, reason: `cannot be read: ${e.message}`}
    }
    const why = said.content ? refusal(appearance(im, said.limits), said.content) : ''
    return why ? {label: '', p: NaN, decision: said.refused_as, reason: why, im} : {...await this.judged(im), im}
  }

  async judged(im) {
    const {said} = this, at = said.classes.indexOf(said.positive), {logits, maps} = await this.ask(this.prepared(im)), {low, high} = said.unsure
    const e = logits.map(v => Math.exp((v - Math.max(...logits))/said.temperature)), p = e[at]/e.reduce((a, b) => a + b, 0)
    const label = p >= said.threshold ? said.positive : said.classes.find(o => o !== said.positive), unsure = low < p && p < high
    return {label, p, decision: unsure ? 'unsure' : label, reason: unsure ? `p is between ${low.toFixed(3)} and ${high.toFixed(3)}` : '', map: evidence(maps, at)}
  }
}

// Each place's share of the log-odds of the positive class: its map minus that of the other class.
function evidence(maps, at) {
  const [, , h, w] = maps.dims, n = h*w, of = k => maps.data.subarray(k*n, (k + 1)*n), [a, b] = [of(at), of(1 - at)]
  return {w, h, v: Float32Array.from(a, (v, i) => v - b[i])}
}

// ---- the page

const $ = id => document.getElementById(id)
const make = (tag, more = {}, ...inside) => { const o = Object.assign(document.createElement(tag), more); o.append(...inside); return o }
const percent = v => `${(100*v).toFixed(1)} %`

class Page {
  constructor(said) {
    this.said = said
    this.rows = []
    this.busy = Promise.resolve()
    $('limits').replaceChildren(...limits(said))
    $('start').hidden = true
    $('tool').hidden = false
    $('file').addEventListener('change', () => { this.take([...$('file').files]); $('file').value = '' })
    $('over').addEventListener('change', () => this.draw())
    for (const o of document.querySelectorAll('.sample')) o.addEventListener('click', () => this.takeSample(o.dataset.src))
    for (const kind of ['dragover', 'dragleave', 'drop']) document.addEventListener(kind, e => this.drag(e))
    document.addEventListener('paste', e => { if (e.clipboardData.files.length) this.take([...e.clipboardData.files]) })
  }

  drag(e) {
    e.preventDefault()
    $('drop').classList.toggle('over', e.type === 'dragover')
    if (e.type === 'drop' && e.dataTransfer.files.length) this.take([...e.dataTransfer.files])
  }

  async takeSample(src) {
    const blob = await (await fetched(src)).blob()
    this.take([new File([blob], src.split('/').pop(), {type: blob.type})])
  }

  take(files) { this.busy = this.busy.then(() => this.answerAll(files)).catch(e => this.fail(e)) }

  async answerAll(files) {
    if (!files.length) return
    this.say('Loading the network, 15 MB, once …')
    document.body.dataset.busy = 'yes'
    try {
      this.predictor ??= await Predictor.load(this.said)
      for (const [i, file] of files.entries()) {
        if (files.length > 1) this.say(`Picture ${i + 1} of ${files.length} …`)
        await this.answer(file, i === 0)
      }
      this.say(files.length > 1 ? `${files.length} pictures answered. The first is shown; the table below opens the others.` : '')
      $('result').scrollIntoView({block: 'nearest'})
    } finally { Object.assign(document.body.dataset, {busy: 'no', rounds: +(document.body.dataset.rounds ?? 0) + 1}) }
  }

  async answer(file, show) {
    const {im, map, ...row} = await this.predictor.answer(new Uint8Array(await file.slice(0, this.said.limits.max_bytes + 1).arrayBuffer()))
    this.rows.push(row)
    this.list(file, row)
    if (show) this.show(file, {im, map, ...row})
  }

  async again(file) { this.show(file, await this.predictor.answer(new Uint8Array(await file.arrayBuffer()))) }

  list(file, {label, p, decision, reason}) {
    const open = make('button', {type: 'button', textContent: file.name})
    open.addEventListener('click', () => this.again(file).then(() => $('result').scrollIntoView({block: 'nearest'})))
    const row = make('tr', {}, make('td', {}, open), make('td', {textContent: decision}), make('td', {textContent: Number.isNaN(p) ? '' : p.toFixed(3)}), make('td', {textContent: reason}))
    Object.assign(row.dataset, {label, p, decision, reason})
    $('rows').append(row)
    $('all').hidden = this.rows.length < 2
  }

  show(file, found) {
    this.shown = found
    const {said} = this, {decision, p, reason, im} = found, known = said.classes.includes(decision), read = !reason.startsWith('cannot be read')
    $('result').hidden = false
    $('result').dataset.kind = known ? (decision === said.positive ? 'positive' : 'negative') : decision === 'unsure' ? 'unsure' : 'refused'
    $('name').textContent = file.name
    $('decision').textContent = !read ? 'Cannot be read' : known ? decision : decision[0].toUpperCase() + decision.slice(1)
    $('why').textContent = [known ? '' : sentence(read ? reason : reason.slice('cannot be read: '.length)), meaning(decision, found.label, said, read)].join(' ').trim()
    $('scale').hidden = $('lookrow').hidden = Number.isNaN(p)
    if (!Number.isNaN(p)) this.scale(p)
    $('picture').hidden = !im
    if (im) this.draw()
  }

  scale(p) {
    const {low, high} = this.said.unsure
    $('p').textContent = p > .9995 ? 'above 0.999' : p < .0005 ? 'below 0.001' : p.toFixed(3)
    $('band').style.left = `${100*low}%`
    $('band').style.width = `${100*(high - low)}%`
    $('mark').style.left = `${100*p}%`
  }

  draw() { // the picture, and what speaks for each class over it
    const {im, map} = this.shown ?? {}, canvas = $('picture')
    if (!im) return
    const k = 640/Math.max(im.w, im.h), pen = canvas.getContext('2d')
    canvas.width = Math.max(1, Math.round(im.w*k))
    canvas.height = Math.max(1, Math.round(im.h*k))
    pen.imageSmoothingQuality = 'high'
    pen.drawImage(painted(im.w, im.h, i => [im.rgb[3*i], im.rgb[3*i + 1], im.rgb[3*i + 2], 255]), 0, 0, canvas.width, canvas.height)
    canvas.setAttribute('aria-label', map ? spoken(map, this.said) : 'The picture')
    if (!map || !$('over').checked) return
    const most = map.v.reduce((a, v) => Math.max(a, Math.abs(v)), 1e-9), css = getComputedStyle(document.documentElement)
    const [warm, cold] = ['--for', '--against'].map(o => css.getPropertyValue(o).trim().split(/\s+/).map(Number))
    pen.drawImage(painted(map.w, map.h, i => [...(map.v[i] > 0 ? warm : cold), 200*Math.abs(map.v[i])/most]), 0, 0, canvas.width, canvas.height)
  }

  say(what) { $('status').textContent = what }
  fail(e) {
    console.error(e)
    this.say(`This does not work here: ${e.message}.`)
  }
}

const sentence = s => s ? `${s.startsWith('p ') ? 'p' : s[0].toUpperCase()}${s.slice(1)}.` : '' // p is a symbol, and stays small
function meaning(decision, label, said, read) {
  if (decision === 'unsure') return `That is closer to ${label}, but such cells are too often mistaken.`
  if (decision === said.positive) return 'The network finds what it learned from cells with parasites.'
  if (said.classes.includes(decision)) return 'The network finds no sign of a parasite.'
  return read ? 'Only single red blood cells, cut out on black, are answered.' : ''
}
function painted(w, h, colour) {
  const canvas = Object.assign(document.createElement('canvas'), {width: w, height: h}), pen = canvas.getContext('2d'), image = pen.createImageData(w, h)
  for (let i = 0; i < w*h; i++) image.data.set(colour(i), 4*i)
  pen.putImageData(image, 0, 0)
  return canvas
}
function spoken({w, h, v}, {positive}) {
  const i = v.indexOf(Math.max(...v)), third = (k, n, names) => names[Math.min(2, Math.floor(3*(k + .5)/n))]
  return `The picture. What speaks most for ${positive} lies ${third(Math.floor(i/w), h, ['at the top', 'in the middle', 'at the bottom'])}, ${third(i % w, w, ['left', 'centre', 'right'])}`
}
function limits(said) {
  const {accuracy, accuracy_ci, n, patients, sensitivity, specificity} = said.metrics.test, {test, test_refused} = said.content.about, u = said.unsure.test
  const items = [
    `On ${n.toLocaleString('en')} cells of ${patients} patients whom it never saw: ${percent(accuracy)} right (95 % interval by patient: ${percent(accuracy_ci[0])} to ${percent(accuracy_ci[1])}), ` +
      `sensitivity ${percent(sensitivity)}, specificity ${percent(specificity)}. It calls ${percent(u.unsure)} of them unsure; of the others ${percent(u.error_decided)} are wrong.`,
    `The check for what is no cell refuses ${percent(test_refused/test)} of real cells it never saw.`,
    'It knows one laboratory, one stain, one way of taking pictures. Half of its cells were parasitized; in blood far fewer are, so most of its alarms there may be false.',
    'A cell is not a patient.']
  return items.map(textContent => make('li', {textContent}))
}

function scheme() { // the choice made on the site's other pages
  try { const s = localStorage.getItem('smalldocs-scheme'); if (s) document.documentElement.dataset.theme = s === 'alternate' ? 'dark' : 'light' } catch (e) { /* storage is closed */ }
}

if (globalThis.document && $('tool')) {
  scheme()
  fetchDescription().then(said => { window.page = new Page(said) }).catch(e => { console.error(e); $('start').textContent = `This does not work here: ${e.message}.` })
}
