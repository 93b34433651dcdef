"""Variable embedding and aggregation in the plain form: every token of every variable."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def aggregate(
    fields: Tensor,
    proj_weights: Tensor,
    proj_biases: Tensor,
    var_embed: Tensor,
    var_query: Tensor,
    attention: nn.MultiheadAttention,
    ignore_missing: bool,
) -> Tensor:
    """One convolution per variable, then cross-attention of the query: [B, V, H, W] to [B, L, D].

    NaN counts as 0; a variable missing in a whole patch is masked there if `ignore_missing`; a
    patch without any variable gives zeros. `attention` has batch_first.
    """
    batch, num_variables = fields.shape[:2]
    patch, filled = proj_weights.shape[-1], fields.nan_to_num(0.0)
    tokens, absent = [], []
    for v in range(num_variables):
        field = filled[:, v : v + 1]
        token = F.conv2d(field, proj_weights[v], proj_biases[v], stride=patch)
        tokens.append(token.flatten(2).transpose(1, 2) + var_embed[0, v])
        missing = fields[:, v : v + 1].isnan().to(fields.dtype)
        absent.append(F.avg_pool2d(missing, patch).flatten(1) == 1.0)
    stacked = torch.stack(tokens, dim=2).flatten(0, 1)
    mask = torch.stack(absent, dim=2).flatten(0, 1) & ignore_missing
    nothing = mask.all(dim=1)
    result = stacked.new_zeros(stacked.shape[0], stacked.shape[2])
    some = ~nothing
    query = var_query.expand(int(some.sum()), 1, -1)
    out, _ = attention(query, stacked[some], stacked[some], key_padding_mask=mask[some])
    result[some] = out[:, 0]
    return result.reshape(batch, -1, result.shape[-1])
