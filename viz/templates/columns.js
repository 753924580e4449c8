async function column(name) {
  const {kind, items, packed} = data.columns[name];
  const raw = Uint8Array.from(atob(packed), letter => letter.charCodeAt(0));
  const stream = new Blob([raw]).stream().pipeThrough(new DecompressionStream("deflate"));
  const planes = new Uint8Array(await new Response(stream).arrayBuffer());
  const wide = +kind[1], bytes = new Uint8Array(items * wide);
  for (let plane = 0; plane < wide; plane++)
    for (let i = 0; i < items; i++) bytes[i * wide + plane] = planes[plane * items + i];
  const kinds = {u1: Uint8Array, u2: Uint16Array, u4: Uint32Array, i1: Int8Array, i2: Int16Array,
    i4: Int32Array, i8: BigInt64Array};
  const values = new kinds[kind](bytes.buffer);
  return kind === "i8" ? Float64Array.from(values, Number) : values;
}
function added(steps) {
  const result = new Float64Array(steps.length);
  let last = 0;
  for (let i = 0; i < steps.length; i++) result[i] = last += steps[i];
  return result;
}
function words(units) {
  let value = units * data.unit;
  for (const name of ["ns", "us", "ms"]) { if (value < 999.5) return +value.toPrecision(3) + " " + name; value /= 1000; }
  if (value < 10) return +value.toFixed(6) + " s";
  return +value.toPrecision(value < 999 ? 3 : 6) + " s";
}
