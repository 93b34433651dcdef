"""Patch embedding and variable aggregation, folded: no tensor of V x L x D ever exists."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class TokenEmbeds(nn.Module):
    """One patch embedding per variable, stacked: `proj_weights` [V, D, 1, p, p], `proj_biases`."""

    def __init__(self, num_variables: int, dim: int, patch: int) -> None:
        super().__init__()
        self.proj_weights = nn.Parameter(torch.empty(num_variables, dim, 1, patch, patch))
        self.proj_biases = nn.Parameter(torch.zeros(num_variables, dim))
        nn.init.trunc_normal_(self.proj_weights, std=0.02)

    def affine(self, var_embed: Tensor) -> Tensor:
        """E_v = [W_v | b_v + e_v]: a variable's token is E_v (pixels, 1).

        Args:
            var_embed: shape [1, V, D].
        Returns:
            Shape [V, D, p * p + 1].
        """
        constant = self.proj_biases + var_embed[0]
        return torch.cat([self.proj_weights.flatten(2), constant.unsqueeze(-1)], dim=-1)


class VariableAggregation(nn.Module):
    """Cross-attention of one learned query to a patch's variables, from their pixels.

    The parameters are those of `nn.MultiheadAttention`. A token is linear in its pixels and there
    is one query, so a head's score is a dot product of the pixels with p * p + 1 numbers and its
    value the attention-weighted pixels times small matrices; both are rebuilt at each call. The
    key bias shifts all scores of a head alike and so does not occur.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(
        self, pixels: Tensor, present: Tensor | None, affine: Tensor, query: Tensor
    ) -> Tensor:
        """Aggregate the variables of each patch.

        Args:
            pixels: without NaN, shape [B, L, V, p * p].
            present: variables that take part in a patch, bool, [B, L, V]; None: all do.
            affine: `TokenEmbeds.affine`, shape [V, D, p * p + 1].
            query: shape [1, 1, D].
        Returns:
            Shape [B, L, D]; zero where a patch has no variable.
        """
        # small, and its softmax is over few variables: float32 under autocast costs nothing
        with torch.autocast(pixels.device.type, enabled=False):
            score_of, value_of = self._fold(affine, query)
            score = torch.einsum("blvn,avn->blav", pixels, score_of[..., :-1]) + score_of[..., -1]
            if present is not None:
                # a patch without any keeps all, so that no softmax is over nothing
                keep = present | ~present.any(dim=-1, keepdim=True)
                score = score.masked_fill(~keep.unsqueeze(2), float("-inf"))
            weight = score.softmax(dim=-1).unsqueeze(-1)
            weighted = torch.cat([weight * pixels.unsqueeze(2), weight], dim=-1)
            value = torch.einsum("blam,amd->blad", weighted.flatten(3), value_of).flatten(2)
            bias = self.in_proj_bias.chunk(3)[2]
            result: Tensor = self.out_proj(value + bias)
            if present is not None:
                result = result * present.any(dim=-1, keepdim=True)
            return result

    def _fold(self, affine: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        """Score vectors [A, V, p * p + 1] and value matrices [A, V * (p * p + 1), D / A]."""
        weight_q, weight_k, weight_v = self.in_proj_weight.chunk(3)
        bias_q = self.in_proj_bias.chunk(3)[0]
        heads, dim = self.num_heads, affine.shape[1]
        projected = (weight_q @ query[0, 0] + bias_q).reshape(heads, -1)
        key_side = torch.einsum("ah,ahd->ad", projected, weight_k.reshape(heads, -1, dim))
        score_of = torch.einsum("ad,vdn->avn", key_side, affine) * projected.shape[1] ** -0.5
        value_of = torch.einsum("ahd,vdn->avnh", weight_v.reshape(heads, -1, dim), affine)
        return score_of, value_of.flatten(1, 2)


def patch_pixels(fields: Tensor, patch: int) -> Tensor:
    """[B, V, H, W] -> [B, h * w, V, p * p], tokens in the order of the stored rows."""
    batch, variables, height, width = fields.shape
    cells = fields.reshape(batch, variables, height // patch, patch, width // patch, patch)
    return cells.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, variables, patch * patch)
