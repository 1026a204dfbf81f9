"""The shared example of the methods that change feature styles, and a small student for them."""

import torch

X = torch.tensor(
    [[[0.0, 1, 2, 3], [4, 0, 4, 0]], [[10, 10, 20, 20], [1, 2, 3, 6]]], dtype=torch.float64
)  # 2 samples, 2 channels, 4 voxels
SWAPPED = (1, 0)


def styled(method, feature, *draw, partners=SWAPPED):
    """The features that a method computes from the given random numbers, when samples have the given partners."""
    draw = tuple(torch.as_tensor(numbers, dtype=feature.dtype) for numbers in draw)
    return method.styled(feature, draw, lambda values: values[list(partners)])


def assert_values(result, expected):
    """Equal to the six printed digits."""
    torch.testing.assert_close(result, torch.tensor(expected, dtype=result.dtype), atol=1.01e-6, rtol=0)


class Net(torch.nn.Module):
    """A student with two stages, which multiply by 2 and by 3."""

    widths = (1, 1)

    def __init__(self, domains=(0, 0), samples=2):
        super().__init__()
        self.changes, self.places, self.before, self.lines = {}, {}, [], []
        self.case_domains, self.samples_per_device = torch.tensor(domains), samples

    def change(self, stage, function, always=False, at="stage"):
        assert always
        self.changes[stage], self.places[stage] = function, at

    def before_each_pass(self, draw):
        self.before.append(draw)

    def domains(self, keys):
        return self.case_domains

    def log(self, text):
        self.lines.append(text)

    def forward(self, x):
        for draw in self.before:
            draw(x)
        for stage, factor in enumerate((2, 3)):
            x = factor * x
            x = self.changes.get(stage, lambda feature: feature)(x)
        return x
