"""Self-training in a loop of your own, without labels and without a trainer: sample, vote, advantage, loss.

    python examples/bare_loop.py [--steps 20] [--model runs/quickstart-.../model]

Without a model that boxes its answers it trains a tiny random Llama on its first two tokens: that one learns to agree with
itself and has nothing to be right about.
"""

import argparse

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from srt_fast.integrations.padded import pack
from srt_fast.quickstart import build_tokenizer
from srt_kernels import AnswerReader, Objective, group_advantage, linear_policy_loss, majority_vote

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=20)
parser.add_argument("--model")
args = parser.parse_args()
PROMPTS, GROUP = (
    ["740+580=", "210+700=", "503+890=", "990+100="],
    16,
)  # 47 + 85 ..., as the quickstart writes them
RULE, LENGTH, LR = ("boxed", 16, 1e-4) if args.model else ("whole", 2, 1e-3)

torch.manual_seed(0)
tokenizer = AutoTokenizer.from_pretrained(args.model) if args.model else build_tokenizer()
model = (
    AutoModelForCausalLM.from_pretrained(args.model)
    if args.model
    else LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            initializer_range=0.4,
        )
    )
)
optimizer = torch.optim.AdamW(model.parameters(), lr=LR)
objective, reader = Objective.preset("srt"), AnswerReader(tokenizer, RULE)
prompts = tokenizer(PROMPTS, return_tensors="pt", padding=True, padding_side="left")
cu_groups = torch.arange(0, GROUP * len(PROMPTS) + 1, GROUP)

for step in range(args.steps):
    ids = model.generate(
        **prompts,
        do_sample=True,
        top_k=0,
        max_new_tokens=LENGTH,
        num_return_sequences=GROUP,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    start, end = prompts.input_ids.shape[1], ids == tokenizer.eos_token_id
    mask = (torch.arange(ids.shape[1]) >= start) & (
        end.cumsum(1) - end.int() == 0
    )  # [B, L]: up to the first end
    seen = torch.cat([prompts.attention_mask.repeat_interleave(GROUP, 0), mask[:, start:]], 1)

    hidden = model.model(
        ids, attention_mask=seen, position_ids=(seen.cumsum(1) - 1).clamp(min=0)
    ).last_hidden_state
    rows, cu_seqlens = pack(mask)
    targets = ids[mask]
    vote = majority_vote(reader.keys(targets, cu_seqlens), cu_groups)
    advantages = group_advantage(vote.rewards, cu_groups, kind="rloo")
    loss = linear_policy_loss(
        hidden.flatten(0, 1),
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
    print(
        f"step {step + 1}: loss {loss.item():+.4f}, share of the majority {vote.share.mean().item():.3f}"
    )
