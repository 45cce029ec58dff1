"""Run by a Python with another transformers: what it makes of a folder, as JSON on the last line.

Arguments: the folder, and a JSON object with `ids`, `texts` and `talk`.
"""

import json
import sys

import torch
import transformers

folder, asked = sys.argv[1], json.loads(sys.argv[2])
model, loading = transformers.AutoModelForCausalLM.from_pretrained(
    folder, torch_dtype=torch.float32, attn_implementation="eager", output_loading_info=True
)
with torch.no_grad():
    logits = model(torch.tensor([asked["ids"]])).logits[0]
tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
turns = None
if tokenizer.chat_template:
    turns = tokenizer.apply_chat_template(asked["talk"], tokenize=False, add_generation_prompt=True)
answer = {
    "keys": [*loading["missing_keys"], *loading["unexpected_keys"], *loading["mismatched_keys"]],
    "logits": logits.tolist(),
    "tokens": [tokenizer(text).input_ids for text in asked["texts"]],
    "special": [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id],
    "turns": turns,
    "stops": model.generation_config.eos_token_id,
    "cache": model.config.use_cache,
}
print("\n" + json.dumps(answer))
