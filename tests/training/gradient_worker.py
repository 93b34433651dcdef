"""One rank of test_step.py: saves the gradient of one optimizer step of eight items."""

import sys

import torch

from aqnet import distributed
from aqnet.training.step import Trainee, optimizer_step, warm_up
from aqnet.training.telemetry import Stopwatch
from tests.training.toy import Toy, batch_of, config


def main() -> None:
    path, micro_batch, how = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    device = distributed.start(60.0)
    torch.manual_seed(3)
    model = Toy().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    settings = config(clip_norm=0.01) if how == "clipped" else config()
    trainee = Trainee(
        settings, model, distributed.wrap(model), optimizer, device, Stopwatch(device)
    )
    warm_up(trainee, batch_of([-1]))
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    size, rank = distributed.world_size(), distributed.rank()
    steps = -(-8 // (size * micro_batch))
    firsts = [(step * size + rank) * micro_batch for step in range(steps)]
    items = [list(range(first, min(first + micro_batch, 8))) or [-1] for first in firsts]
    batches = [batch_of(part, poison=5 if how == "broken" else None) for part in items]
    result = optimizer_step(trainee, iter(batches), steps, 0, [1.0, float(rank)])
    after = dict(model.named_parameters())
    change = {name: before[name] - after[name].detach() for name in before}
    if distributed.is_main():
        torch.save({"change": change, "loss": result.loss, "updated": result.updated}, path)
    assert result.flags == [size, size * (size - 1) / 2]


if __name__ == "__main__":
    main()
    distributed.stop()
