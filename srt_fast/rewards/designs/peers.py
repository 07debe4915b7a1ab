"""Labels of several models: r_i = 1[a_i = m_P].

m_P = argmax_a sum_k w_k 1[m_k = a], over the peers k that voted on the prompt. m_k is the majority
of peer k, w_k its share.

RLCCF (arXiv 2508.12338): models of several makers answer each prompt. Their joint vote, where each
model's weight is its self-consistency, rewards all of them, and all of them train. Models that were
trained apart rarely agree on the same mistake. It needs no labels; the source needs none either.

Ours: the peers do not train, and their votes are files (`srt-fast vote --out`), so a peer can have
any tokenizer and any size. A peer counts with its majority alone, in the source with all of its
answers. The policy has no vote. So what it learns to prefer cannot become its label, as with
`frozen`, and its ceiling is the peers' vote. In a tie the peer of the earlier file wins. A prompt
on which no peer voted gets reward 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from srt_fast.rewards.base import PeerVotes, Requirement, keep_all, label_agreement
from srt_fast.types import Groups, Reward
from srt_kernels import majority_vote


@dataclass(frozen=True, kw_only=True)
class Peers:
    """Reward 1 for the peers' answer.

    `files`: the votes of one peer each, as `srt-fast vote --out` writes them, or JSON lines with
    the columns "prompt" (as the task has it), "label", and optionally "share" (1 if it is missing).
    """

    files: tuple[str, ...] = ()

    @property
    def requires(self) -> tuple[Requirement, ...]:
        return (PeerVotes(files=self.files),)

    def __call__(self, groups: Groups) -> Reward:
        assert groups.peer_labels is not None and groups.peer_shares is not None
        prompts, peers = groups.peer_labels.shape
        device = groups.peer_labels.device
        cu_prompts = peers * torch.arange(prompts + 1, dtype=torch.int32, device=device)
        shares = groups.peer_shares.flatten()
        labels = majority_vote(groups.peer_labels.flatten(), cu_prompts, weights=shares).majority
        return Reward(rewards=label_agreement(groups, labels), keep=keep_all(groups))
