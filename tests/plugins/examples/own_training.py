"""A training function, gradient descent with momentum, and a loss for hard samples."""

import torch
import torch.nn.functional as F


def train(config, data, report):
    weights = dict(data.model.named_parameters())
    moments = report.state or {name: torch.zeros_like(w) for name, w in weights.items()}
    for epoch in range(report.epoch, config.epochs):
        for inputs, lengths, labels in data.batches(epoch):
            loss = data.losses(data.model(inputs, lengths), labels).mean()
            gradients = torch.autograd.grad(loss, list(weights.values()))
            with torch.no_grad():
                for (name, w), gradient in zip(weights.items(), gradients, strict=True):
                    moments[name] = config.momentum * moments[name] + gradient
                    w.sub_(config.learning_rate * moments[name])
        report(loss.item(), state=moments)


def focal(outputs, labels, gamma=2.0):
    losses = F.cross_entropy(outputs, labels, reduction="none")
    return (1 - torch.exp(-losses)) ** gamma * losses


TRAINERS, LOSSES = {"descent": train}, {"focal": focal}
