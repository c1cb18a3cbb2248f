#!/usr/bin/env bash
# Fine-tune a Hugging Face model on own text, and give it to transformers and llama.cpp. The model is a small one with
# random weights, made here. About a minute on two cores; the programs that are not installed are skipped.
#
#   tests/journeys/finetune_export.sh [FILE or FOLDER]
. "$(dirname "$0")/steps.sh"

make_model() {  # a folder as Hugging Face's hub has it
  gpt2 prepare "$text" --tokenizer=bpe --vocab_size=1000 --out=data/first &&
    gpt2 train --dataset=first --out_dir=out-first --n_layer=2 --n_head=4 --n_embd=128 --block_size=128 \
      --batch_size=8 --max_iters=1 --warmup_iters=0 --eval_iters=1 --compile=False --device=cpu &&
    gpt2 export hf out-first their-model
}

in_transformers() {
  python - <<'END'
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import gpt2

tokenizer, model = AutoTokenizer.from_pretrained("my-model"), AutoModelForCausalLM.from_pretrained("my-model")
ids = tokenizer("import asyncio", return_tensors="pt").input_ids
text = tokenizer.decode(model.generate(ids, max_new_tokens=20, do_sample=False)[0])
ours, our_tokenizer = gpt2.load("out-notes")
assert our_tokenizer.encode("import asyncio") == ids[0].tolist()
with torch.no_grad():
    difference = (ours(ids)[0][0, -1] - model(ids).logits[0, -1]).abs().max().item()
assert difference < 1e-3, f"the logits differ by {difference}"
print(text)
END
}

in_llamacpp() {
  python - <<'END'
from llama_cpp import Llama

model = Llama("my-model.gguf", n_ctx=128, verbose=False)
print(model("import asyncio", max_tokens=20, temperature=0)["choices"][0]["text"])
END
}

step "make a model" make_model
step "prepare with its tokenizer" gpt2 prepare "$text" --tokenizer=their-model --out=data/notes
step fine-tune gpt2 train --init_from=their-model --dataset=notes --out_dir=out-notes --learning_rate=1e-3 --block_size=128 \
  --batch_size=8 --max_iters=200 --warmup_iters=10 --eval_interval=100 --eval_iters=10 --compile=False --device=cpu
step "loss before" gpt2 eval loss their-model notes --tokens=5000
step "loss afterwards" gpt2 eval loss out-notes notes --tokens=5000
step "export hf" gpt2 export hf out-notes my-model
step "export gguf" gpt2 export gguf out-notes my-model.gguf
step "export gguf q8_0" gpt2 export gguf out-notes my-model-q8_0.gguf --dtype=q8_0
step "sample from the gguf file" gpt2 sample my-model.gguf --max_new_tokens=30
if installed transformers; then
  step validate gpt2 validate my-model
  step "load in transformers" in_transformers
else
  skipped "validate, load in transformers" "transformers is not installed (pip install transformers)"
fi
if installed llama_cpp; then
  step "load in llama.cpp" in_llamacpp
else
  skipped "load in llama.cpp" "llama-cpp-python is not installed (pip install llama-cpp-python)"
fi
finish
