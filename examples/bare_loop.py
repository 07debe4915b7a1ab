"""Self-training in a loop of your own, without labels and without a trainer.

    python examples/bare_loop.py [--steps 20] [--model runs/quickstart-.../model]

Each step samples, votes, makes advantages and minimises the loss. --model takes a model that writes
\\boxed{...}. Without one, a tiny random Llama is trained on its first two tokens: it learns to
agree with itself, and there is no right answer.
"""

import argparse

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from srt_fast.integrations.padded import pack
from srt_fast.quickstart import build_tokenizer
from srt_kernels import AnswerReader, Objective, group_advantage, linear_policy_loss, majority_vote

PROMPTS = ["740+580=", "210+700=", "503+890=", "990+100="]  # 47 + 85 ..., as in the quickstart
GROUP_SIZE = 16

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=20)
parser.add_argument("--model")
args = parser.parse_args()

torch.manual_seed(0)
if args.model:
    answer_rule = "boxed"
    max_new_tokens = 16
    lr = 1e-4
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model)
else:
    answer_rule = "whole"
    max_new_tokens = 2
    lr = 1e-3
    tokenizer = build_tokenizer()
    model_config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=0.4,
    )
    model = LlamaForCausalLM(model_config)
optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
objective = Objective.preset("srt")
reader = AnswerReader(tokenizer, answer_rule)
prompts = tokenizer(PROMPTS, return_tensors="pt", padding=True, padding_side="left")
prompt_length = prompts.input_ids.shape[1]
cu_groups = torch.arange(0, GROUP_SIZE * len(PROMPTS) + 1, GROUP_SIZE)

for step in range(args.steps):
    # Sample: ids [B, L], with the prompts padded on the left.
    ids = model.generate(
        **prompts,
        do_sample=True,
        top_k=0,
        max_new_tokens=max_new_tokens,
        num_return_sequences=GROUP_SIZE,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    is_end = ids == tokenizer.eos_token_id
    ends_earlier = is_end.cumsum(1) - is_end.int() > 0
    mask = (torch.arange(ids.shape[1]) >= prompt_length) & ~ends_earlier  # up to the first end
    rows, cu_seqlens = pack(mask)
    targets = ids[mask]

    # Vote: the answer of a completion earns 1 if it is its group's majority.
    vote = majority_vote(reader.keys(targets, cu_seqlens), cu_groups)
    advantages = group_advantage(vote.rewards, cu_groups, kind="rloo")

    # Loss: hidden states of the padded batch, log-probs of the targets only.
    prompt_mask = prompts.attention_mask.repeat_interleave(GROUP_SIZE, 0)
    attention_mask = torch.cat([prompt_mask, mask[:, prompt_length:]], 1)
    position_ids = (attention_mask.cumsum(1) - 1).clamp(min=0)
    output = model.model(ids, attention_mask=attention_mask, position_ids=position_ids)
    loss = linear_policy_loss(
        output.last_hidden_state.flatten(0, 1),
        model.lm_head.weight,
        targets,
        advantages,
        cu_seqlens,
        objective,
        row_index=rows,
    ).loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    share = vote.share.mean().item()
    print(f"step {step + 1}: loss {loss.item():+.4f}, share of the majority {share:.3f}")
