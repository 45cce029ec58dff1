"""Run by a Python that has llama-cpp-python: logits and tokens of a GGUF file, as JSON on the last line.

Arguments: the file, and a JSON object with `ids` (a list) and `texts`.
"""

import json
import sys

import llama_cpp

path, asked = sys.argv[1], json.loads(sys.argv[2])
model = llama_cpp.Llama(
    model_path=path,
    n_ctx=256,
    n_threads=1,
    n_gpu_layers=0,
    logits_all=True,
    type_k=llama_cpp.GGML_TYPE_F32,
    type_v=llama_cpp.GGML_TYPE_F32,
    verbose=False,
)
logits = []
if asked["ids"]:
    model.eval(asked["ids"])
    logits = model.scores[: len(asked["ids"])].tolist()
tokens = [model.tokenize(text.encode(), add_bos=True, special=True) for text in asked["texts"]]
texts = [model.detokenize(ids, special=True).decode(errors="replace") for ids in tokens]
plain = [model.tokenize(text.encode(), add_bos=False, special=False) for text in asked["texts"]]
end_of_turn = llama_cpp.llama_vocab_eot(llama_cpp.llama_model_get_vocab(model._model.model))
stops = [i for i in range(model.n_vocab()) if llama_cpp.llama_vocab_is_eog(model._model.vocab, i)]
answer = {
    "logits": logits,
    "tokens": tokens,
    "texts": texts,
    "plain": plain,
    "eot": end_of_turn,
    "stops": stops,
}
print("\n" + json.dumps(answer))
