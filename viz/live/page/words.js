// Numbers, times and sizes as people read them. No DOM here.

const GROUPS = new Intl.NumberFormat("en");

/** 1,234,567 */
export const count = value => GROUPS.format(Math.round(value));

/** At most four characters and a letter: 950, 12.3k, 4.56M. */
export function short(value) {
  if (value < 0.95) return value ? value.toFixed(1) : "0";
  if (value < 10 && value % 1 > 0.05) return value.toFixed(1);
  for (const [unit, letter] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (value >= unit * 0.9995 && (unit > 1e3 || value >= 9999.5)) {
      const scaled = value / unit;
      return (scaled < 9.995 ? scaled.toFixed(2) : scaled < 99.95 ? scaled.toFixed(1) : scaled.toFixed(0)) + letter;
    }
  }
  return count(value);
}

/** A length of time: 35 µs, 12.4 ms, 3.2 s, 4 min 12 s, 3 h 05 min. */
export function time(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds <= 0) return "0 s";
  if (seconds < 0.9995e-3) return `${(seconds * 1e6).toFixed(0)} µs`;
  if (seconds < 0.9995) return `${(seconds * 1e3).toFixed(seconds < 0.01 ? 1 : 0)} ms`;
  if (seconds < 59.95) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${String(whole % 60).padStart(2, "0")} s`;
  const minutes = Math.round(whole / 60);
  if (minutes < 48 * 60) return `${Math.floor(minutes / 60)} h ${String(minutes % 60).padStart(2, "0")} min`;
  return `${Math.round(minutes / 1440)} days`;
}

/** The same in one unit, for a column of a table: 346 s, 17.2 min, 3.2 h. */
export function brief(seconds) {
  if (seconds < 59.95) return time(seconds);
  if (seconds < 999.5) return `${seconds.toFixed(0)} s`;
  if (seconds < 99.95 * 60) return `${(seconds / 60).toFixed(1)} min`;
  return seconds < 99.95 * 3600 ? `${(seconds / 3600).toFixed(1)} h` : `${(seconds / 86400).toFixed(1)} days`;
}

/** A length of time that ticks: whole seconds. */
export const ticking = seconds => (seconds < 59.5 ? `${Math.max(0, Math.floor(seconds))} s` : time(Math.floor(seconds)));

/** 0 B, 512 KiB, 1.4 GiB */
export function bytes(size) {
  if (size === null || size === undefined) return "–";
  let unit = 0;
  while (size >= 1023.5 && unit < 5) {
    size /= 1024;
    unit++;
  }
  return `${unit === 0 || size >= 99.95 ? size.toFixed(0) : size.toFixed(1)} ${["B", "KiB", "MiB", "GiB", "TiB", "PiB"][unit]}`;
}

/** A part of a whole, in the unit of the whole: 0.7 of 2.0 GiB. */
export function bytesOf(part, whole) {
  const [number, unit] = bytes(whole).split(" ");
  const scaled = part / (whole / Number(number));
  return `${scaled >= 99.95 || !part ? scaled.toFixed(0) : scaled.toFixed(1)} of ${number} ${unit}`;
}

/** A share of 0 to 1: never 100 % before all is done, never 0 % once something is. */
export function percent(part, whole = 1) {
  if (!whole) return "0 %";
  const value = (100 * part) / whole;
  if (value <= 0) return "0 %";
  if (value < 1) return "< 1 %";
  return `${value >= 100 ? 100 : Math.min(99, Math.floor(value))} %`;
}

/** "1 task", "12 tasks" */
export const counted = (value, one, many = `${one}s`) => `${count(value)} ${value === 1 ? one : many}`;

/** A moment of the wall clock, in the reader's zone. */
export const clock = wall_s => new Date(wall_s * 1000).toLocaleTimeString("en-GB");
