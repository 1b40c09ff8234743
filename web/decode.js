// Greedy decoding with ONNX Runtime: the same loop as course_utils/phone/decode.py.

/**
 * Write tokens after a prompt, always the most likely one.
 *
 * @param {object} ort onnxruntime-web.
 * @param {object} session on the exported model; its inputs are described in decode.py.
 * @param {number[]} prompt token ids.
 * @param {number} newTokens so many are written, fewer when a stop token comes.
 * @param {number[]} stop ids that end a text.
 * @yields {number} one new id after the other.
 */
export async function* generate(ort, session, prompt, newTokens, stop = []) {
  const past = session.inputMetadata.filter((input) => input.name.startsWith("past_"));
  let cache = Object.fromEntries(past.map(({ name, shape }) => [
    name, new ort.Tensor("float32", new Float32Array(0), [1, shape[1], 0, shape[3]])]));
  const integers = (values) => BigInt64Array.from(values, BigInt);
  let ids = prompt;
  let seen = 0;
  for (let written = 0; written < newTokens; written++) {
    seen += ids.length;
    const outputs = await session.run({
      input_ids: new ort.Tensor("int64", integers(ids), [1, ids.length]),
      attention_mask: new ort.Tensor("int64", new BigInt64Array(seen).fill(1n), [1, seen]),
      kept: new ort.Tensor("int64", integers([ids.length - 1]), [1]),
      ...cache,
    });
    cache = Object.fromEntries(past.map(({ name }) => [name, outputs[name.replace("past", "present")]]));
    ids = [best(outputs.logits.data)];
    yield ids[0];
    if (stop.includes(ids[0])) return;
  }
}

/** The place of the largest score; of equal ones the first. */
function best(scores) {
  let found = 0;
  for (let i = 1; i < scores.length; i++) if (scores[i] > scores[found]) found = i;
  return found;
}
