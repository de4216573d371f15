#!/usr/bin/env bash
# From nothing to the demo checkpoint and its accuracy, after pip install ".[train]": bash examples/train_demo.sh FOLDER
set -euo pipefail
work=$(realpath -m "${1:?pass a folder for the corpus and the runs}")
cd "$(dirname "$0")"

python corpus.py "$work/corpus"
glm pretrain "$work/corpus/train.txt" "$work/model" --config demo_config.json --tokenizer "$work/corpus/tokenizer" \
    --recipe demo_recipe.json --validation "$work/corpus/validation.txt" --one-document --length 64 \
    --steps 14000 --batch-size 64 --learning-rate 3e-3 --evaluate-every 2000 --save-every 2000 --log-every 400

rm -rf demo_checkpoint demo_vocabulary
glm export "$work/model" demo_checkpoint --dtype float16
cp -r "$work/corpus/vocabulary" demo_vocabulary
cp "$work/corpus/held_out.jsonl" .

glm convert demo_checkpoint "$work/demo" --num-attention-heads 4 --tokenizer gpt2 --task-mask --vocab demo_vocabulary
python evaluate_demo.py "$work/demo" --output demo_results.json
