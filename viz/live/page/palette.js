// Colours: of functions as in the pictures of runs (viz/palette.py, whose `node_colours` this
// repeats; a test holds the two together), of the page as the style sheet has them.

const BASE = [
  [0, 114, 178], [230, 159, 0], [0, 158, 115], [204, 121, 167], [86, 180, 233], [213, 94, 0], [240, 228, 66],
];

/** How far a round of the palette goes towards white (above 0) or black (below 0). */
function mix(turn) {
  if (!turn) return 0;
  let fraction = 0, weight = 0.5;
  for (let step = (turn + 1) >> 1; step; step >>= 1) {
    fraction += weight * (step & 1);
    weight /= 2;
  }
  return turn % 2 ? -0.9 * fraction : 0.8 * fraction;
}

/** Halves go to the even neighbour, as Python has it. */
function rounded(value) {
  const floor = Math.floor(value);
  return value - floor === 0.5 ? floor + (floor % 2) : Math.round(value);
}

/** As many colours as asked for, the first seven those of Okabe and Ito. */
export function colours(count) {
  const found = [];
  for (let turn = 0; found.length < count; turn++) {
    const part = mix(turn), target = part > 0 ? 255 : 0;
    for (const hue of BASE) {
      const channels = hue.map(value => rounded(value + (target - value) * Math.abs(part)));
      found.push(`#${channels.map(value => value.toString(16).padStart(2, "0")).join("")}`);
    }
  }
  return found.slice(0, count);
}

/** Names to numbers, given out once: a function keeps its colour as long as the page is open. */
export class Functions {
  constructor() {
    this.names = [];
    this.numbers = new Map();
    this.known = colours(28);
  }

  number(name) {
    let number = this.numbers.get(name);
    if (number === undefined) {
      number = this.names.length;
      this.numbers.set(name, number);
      this.names.push(name);
      if (number >= this.known.length) this.known = colours(2 * this.known.length);
    }
    return number;
  }

  colour(name) {
    return this.known[this.number(name)];
  }
}

/** The style sheet's colours, for what is drawn; read again when the theme changes. */
export function inks() {
  const style = getComputedStyle(document.documentElement);
  const names = ["text", "muted", "line", "surface", "lane", "accent", "good", "warn", "bad", "placed", "finished"];
  return Object.fromEntries(names.map(name => [name, style.getPropertyValue(`--${name}`).trim()]));
}

/** A canvas as sharp as the screen; gives its pen, in CSS px. */
export function sharp(canvas, wide, tall) {
  const ratio = Math.min(3, window.devicePixelRatio || 1);
  const width = Math.max(1, Math.round(wide * ratio)), height = Math.max(1, Math.round(tall * ratio));
  if (canvas.width !== width || canvas.height !== height) {
    canvas.width = width;
    canvas.height = height;
  }
  const pen = canvas.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  return pen;
}
