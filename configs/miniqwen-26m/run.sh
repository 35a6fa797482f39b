#!/usr/bin/env bash
# The whole life of a miniqwen of 26 M parameters, a line a stage, on one 24 GB card. At its own size not run yet.
#
# With tiny sizes in these very files, 0.2 M parameters and 4 to 24 steps a stage, it ran on one CPU core, vLLM included,
# in 7 min 12 s; and again, killed (kill -9) once in each of its lines and started anew each time. Rows, weights,
# optimizers, losses, completions and results were equal bit for bit.
#
# The data are MiniMind's, in its own layouts. On the Hub they are jingyaogong/minimind_dataset, on ModelScope
# gongjy/minimind_dataset; where the newest revision has other names, these files are in an earlier one. Lay them here:
#
#   minimind_dataset/pretrain_hq.jsonl     1.6 GB   {"text": ...}
#   minimind_dataset/sft_mini_512.jsonl    1.2 GB   {"conversations": [...]}, of fewer than 512 tokens
#   minimind_dataset/sft_1024.jsonl        5.6 GB   {"conversations": [...]}, of fewer than 1,024 tokens
#   minimind_dataset/dpo.jsonl             55 MB    {"chosen": [...], "rejected": [...]}
#   minimind_dataset/r1_mix_1024.jsonl     340 MB   {"conversations": [...]}, with <think> and <answer>
#
# From the Hub, by the name of each of the five in turn (with --revision for an earlier state):
#
#   hf download jingyaogong/minimind_dataset --repo-type dataset --local-dir minimind_dataset pretrain_hq.jsonl
#
# SpongeBob's files have the same layouts; a name that differs is a key of the YAML file that reads it. Whatever was
# interrupted, by Ctrl-C, a reboot or kill -9: run it again, and it goes on from there to the same numbers.

set -euo pipefail
life=$(realpath --relative-to="$PWD" "$(dirname "$0")")
PATH="$PWD/.venv/bin:$PATH"

suite prepare   --config "$life/1-prepare-text.yaml"      # what it reads, and 1,000 documents to be measured on
suite prepare   --config "$life/2-prepare-pairs.yaml"     # which of two answers people prefer
suite prepare   --config "$life/3-prepare-sums.yaml"      # problems whose answers can be checked
suite tokenizer --config "$life/4-tokenizer.yaml"         # 6,400 tokens

suite pretrain  --config "$life/5-pretrain.yaml"          # it learns to speak
suite sft       --config "$life/6-sft.yaml"               # to answer
suite sft       --config "$life/7-sft-long.yaml"          # to answer at length
suite dpo       --config "$life/8-dpo.yaml"               # as people like it
suite sft       --config "$life/9-sft-traces.yaml"        # and to think first: R1's traces, their tags weighed by ten

suite pretrain  --config "$life/10-pretrain-large.yaml"   # a larger one of its kind
suite sft       --config "$life/11-sft-large.yaml"        # learns to answer, too
suite distill   --config "$life/12-distill.yaml"          # and teaches it, token by token

suite sft       --config "$life/13-sft-sums.yaml"         # it is shown how to add, by one who forgets to carry
suite grpo      --config "$life/14-grpo.yaml"             # and finds out what is right by itself

suite evaluate  --config "$life/evaluate-pretrain.yaml"   # bits per byte
suite evaluate  --config "$life/evaluate-dpo.yaml"        # the share of preferred answers
suite evaluate  --config "$life/evaluate.yaml"            # format, thinking, accuracy
suite report    --config "$life/15-report.yaml"           # runs/miniqwen-26m/report.html

# Two comparisons that are not on this road:
#
#   suite sft      --config configs/miniqwen-26m/sft-traces-on-short.yaml      R1's traces on top of the short chats,
#   suite sft      --config configs/miniqwen-26m/sft-traces-on-long.yaml       or of the long ones; and of either the
#   suite evaluate --config configs/miniqwen-26m/evaluate-traces.yaml          checkpoint at 1.5 epochs
#
#   suite pretrain --config configs/miniqwen-26m/pretrain-moe.yaml             a mixture of experts against the dense
#   suite evaluate --config configs/miniqwen-26m/evaluate-pretrain.yaml --checkpoints runs/miniqwen-26m/pretrain runs/miniqwen-26m/pretrain-moe
