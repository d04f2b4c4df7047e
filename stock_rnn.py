# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy>=1.26", "torch>=2.6"]
# ///
# SPDX-License-Identifier: MIT-0
"""Next-value prediction with a recurrent network in torch, from a CSV file to an honest score.

    python stock_rnn.py                                learn from two years of Bitcoin prices
    python stock_rnn.py train my.csv --column Close    learn from your own values
    python stock_rnn.py resume stock_rnn.pt            go on with a run that was stopped
    python stock_rnn.py test stock_rnn.pt other.csv    measure how well it predicts other values
    python stock_rnn.py predict stock_rnn.pt my.csv    the values after the last row

One hidden layer reads a window of values, one a step (x_t), and a linear layer says what comes
next (y):

    a_t = tanh(Waa a_{t-1} + Wax x_t + ba)
    y   = Wya a_T + by
    L   = mean over windows of (y - target)^2

Every score stands beside those of three simple forecasts, because most networks that look good on
a chart have learned no more than one of these: the last value; drift, which adds the mean change;
and a straight line, the best weighted sum of the window.

Shapes, everywhere below: N values, T steps in a window, B windows in a batch, H hidden units.
"""

import argparse
import copy
import csv
import io
import math
import os
import re
import secrets
import shlex
import shutil
import signal
import sys
import zipfile
from array import array
from collections import Counter
from contextlib import suppress
from datetime import date
from functools import lru_cache, partial
from itertools import chain, islice, pairwise, permutations
from pathlib import Path

# One thread: on a busy machine, threads that wait for each other are 10 to 50 times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset


class UserError(ValueError):
    """What a user can mend: the command line tells it in one line. All else is a bug."""


# --------------------------------------------------------------------------------------------------
# Data: from values to windows, each with the value that follows it

NORMALISE = ("relative", "difference", "range")


class StockDataset(Dataset):
    """Windows of values, each with the value that follows it, as a network wants them.

    Item i is (window, target): the T values from i on as (T, 1) float32, and the next one as (1,).
    A list, slice or tensor of B indices gives a batch: (B, T, 1) and (B, 1). Each value v becomes
    x = (v - centre) / unit, and a model's output stands for the value centre + unit * output.

        normalise     centre                  unit            scale, fitted to these values
        relative      last of the window      scale * last    std of the relative changes
        difference    last of the window      scale           std of the changes
        range         middle of the range     scale           half of the range

    Fit scale and middle to the training part, and take them for the others, as with_values does.
    Raises UserError for values that are no series (N,), too few, not finite, all alike, or not
    above zero (relative).
    """

    def __init__(self, values, seq_length, normalise="relative", scale=None, middle=0.0):
        self.values = np.array(values, np.float64)
        self.seq_length = seq_length
        self.normalise = normalise
        self.scale = scale
        self.middle = middle
        if normalise not in NORMALISE:
            raise UserError(f"normalise must be one of {', '.join(NORMALISE)}, not {normalise}")
        if self.values.ndim != 1:
            raise UserError(f"values must be one series (N,), not an array {self.values.shape}")
        if len(self.values) < seq_length + (scale is None):
            raise UserError(f"{len(self.values)} values are too few for a window of {seq_length}")
        low = self.values.min()
        high = self.values.max()
        if not abs(low) + abs(high) < 1e100:
            raise UserError(f"values must be finite numbers below 1e100, not from {low} to {high}")
        if normalise == "relative" and low <= 0:
            raise UserError(f"{low:g} is not above zero: train with --normalise difference")
        if scale is None:
            self.fit(low, high)

    def fit(self, low, high):
        """Set scale and middle for these values."""
        changes = np.diff(self.values)
        size = max(abs(low), abs(high))
        if self.normalise == "relative":
            changes = changes / self.values[:-1]
            size = 1.0
        self.scale = float(np.std(changes))
        if self.normalise == "range":
            self.scale = (high - low) / 2
            self.middle = (high + low) / 2
        if self.scale <= 1e-12 * size:
            raise UserError(f"values from {low:g} to {high:g} all change alike: nothing to learn")

    def with_values(self, values):
        """Other values in such windows, with the same scale and middle."""
        return StockDataset(values, self.seq_length, self.normalise, self.scale, self.middle)

    def __len__(self):
        return len(self.values) - self.seq_length

    def __getitem__(self, index):
        windows = torch.from_numpy(self.values).unfold(0, self.seq_length + 1, 1)  # a view
        rows = windows[index]  # the target last
        centre, unit = self.centre_and_unit(rows[..., -2:-1])
        x = ((rows - centre) / unit).float()
        return x[..., :-1, None], x[..., -1:]

    def __getitems__(self, indices):
        """A list of items, computed at once: DataLoader asks for the items of a batch by this."""
        return list(zip(*self[indices]))

    def centre_and_unit(self, last):
        """The two numbers of the table for windows that end in the value `last`."""
        if self.normalise == "relative":
            return last, self.scale * last
        if self.normalise == "difference":
            return last, self.scale
        return self.middle, self.scale


def split(values, seq_length, val_fraction=0.15, test_fraction=0.15, normalise="auto"):
    """Training, validation and test set in the order of time, by the scale of the training part.

    The last test_fraction of the values are the targets of the test set, those before them of the
    validation set; first windows look back into the part before. With auto, normalise is relative
    if all values of the training part are above zero, else difference. Raises UserError where a
    part would be empty, or have no more than two windows of values to train on, and where a value
    after the training part does not fit its way to normalise.
    """
    if not 0 <= val_fraction + test_fraction < 1:
        raise UserError(
            f"fractions of {val_fraction} and {test_fraction} leave nothing to train on"
        )
    test_start = len(values) - int(len(values) * test_fraction)
    val_start = test_start - int(len(values) * val_fraction)
    if not 2 * seq_length < val_start < test_start < len(values):
        raise UserError(
            f"of {len(values)} values {val_start} would be there to train on, "
            f"{test_start - val_start} to validate and {len(values) - test_start} to test: more "
            f"than {2 * seq_length}, 1 and 1 are needed for --seq-length {seq_length}"
        )
    if normalise == "auto":
        normalise = "relative" if np.min(values[:val_start]) > 0 else "difference"
    train_set = StockDataset(values[:val_start], seq_length, normalise)
    val_set = train_set.with_values(values[val_start - seq_length : test_start])
    test_set = train_set.with_values(values[test_start - seq_length :])
    return train_set, val_set, test_set


# --------------------------------------------------------------------------------------------------
# Model

CELLS = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}


class RNN(nn.Module):
    """A tanh RNN over the window and a linear layer on its last step, (B, T, 1) to (B, 1).

        a_t = tanh(Waa a_{t-1} + Wax x_t + ba)        y = Wya a_T + by

    The cells gru and lstm have gates. The linear layer starts at zero, so that where the centre is
    the last value the untrained model is the naive forecast, and training improves on that.
    """

    def __init__(self, hidden_size=32, cell="rnn"):
        super().__init__()
        self.rnn = CELLS[cell](1, hidden_size, batch_first=True)
        self.linear = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x):
        a, _ = self.rnn(x)  # (B, T, H)
        return self.linear(a[:, -1])


# --------------------------------------------------------------------------------------------------
# Training


def train(
    model,
    train_loader,
    val_loader,
    criterion,
    optimizer,
    scheduler=None,
    epochs=100,
    report=None,
    state=None,
):
    """Minimise a loss; returns {"train_loss": [...], "val_loss": [...]}, a number for each epoch.

    The loaders give batches (x, target), the criterion is a mean over them. A scheduler of torch is
    stepped once an epoch, without a metric. The model ends with the weights whose validation loss
    was lowest, which may be those that it came with.

    report(state) is called after every epoch. Such a state, passed back, goes on from there: on the
    CPU to the same bits, with loaders that draw from torch's own random numbers. A LambdaLR may
    have another plan then. Raises UserError for a loss that is not finite.
    """
    parts = {"model": model, "optimizer": optimizer}
    if scheduler:
        parts["scheduler"] = scheduler
    state = copy.deepcopy(state) or new_state(model, val_loader, criterion)
    for name in parts.keys() & state.keys():
        parts[name].load_state_dict(state[name])
    set_rates(optimizer, scheduler)
    history = state["history"]
    for epoch in range(len(history["val_loss"]) + 1, epochs + 1):
        torch.set_rng_state(state["random"])  # whatever report has drawn, training goes on alike
        train_loss = mean_loss(model, train_loader, criterion, optimizer)
        if scheduler:
            scheduler.step()
        val_loss = evaluate(model, val_loader, criterion)
        if not math.isfinite(train_loss + val_loss):
            raise UserError(f"no finite loss in epoch {epoch}: try a lower learning rate")
        history["train_loss"].append(train_loss)
        history["val_loss"].append(val_loss)
        state |= {name: copy.deepcopy(part.state_dict()) for name, part in parts.items()}
        state["random"] = torch.get_rng_state()
        if val_loss < state["best_loss"]:
            state |= {"best": state["model"], "best_loss": val_loss, "best_epoch": epoch}
        if report:
            report(copy.deepcopy(state))
    model.load_state_dict(state["best"])
    return history


def new_state(model, val_loader, criterion):
    """Where a training starts: the untrained model is the first that may turn out the best."""
    return {
        "history": {"train_loss": [], "val_loss": []},
        "best": copy.deepcopy(model.state_dict()),
        "best_loss": evaluate(model, val_loader, criterion),
        "best_epoch": 0,
        "random": torch.get_rng_state(),
    }


def set_rates(optimizer, scheduler):
    """Give an optimiser the rates by the plan of a LambdaLR, which may be new after loading."""
    if isinstance(scheduler, LambdaLR):
        for group, first_rate, plan in zip(
            optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas
        ):
            group["lr"] = first_rate * plan(scheduler.last_epoch)


@torch.no_grad()
def evaluate(model, loader, criterion):
    """The mean loss over the windows of a loader, in eval mode."""
    return mean_loss(model, loader, criterion)


def mean_loss(model, loader, criterion, optimizer=None):
    """The mean loss over the windows of a loader; an optimiser takes a step after each batch."""
    model.train(optimizer is not None)
    device = next(model.parameters()).device
    total = 0.0
    count = 0
    for x, target in loader:
        output = model(x.to(device))
        shape = getattr(output, "shape", type(output).__name__)
        if shape != target.shape:  # torch would broadcast them, and learn something else
            raise UserError(f"the model answers {shape}, and must answer a tensor {target.shape}")
        loss = criterion(output, target.to(device))
        if optimizer:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        total += loss.item() * len(target)
        count += len(target)
    return total / count


def adamw(model, epochs, learning_rate=3e-3):
    """AdamW, and the scheduler that lets its rate fall by half a cosine to zero."""
    if not 0 < learning_rate < math.inf:
        raise UserError(f"learning_rate must be a positive number, not {learning_rate}")
    optimizer = torch.optim.AdamW(model.parameters(), learning_rate, weight_decay=0.1)
    return optimizer, LambdaLR(
        optimizer, lambda epoch: (1 + math.cos(math.pi * epoch / epochs)) / 2
    )


# --------------------------------------------------------------------------------------------------
# Test and forecast


@torch.no_grad()
def forecast(model, dataset, steps=1):
    """The values after every window, (N - T + 1, steps); each is fed back for the next.

    The last row is what comes after the last value.
    """
    model.eval()
    device = next(model.parameters()).device
    rows = torch.from_numpy(dataset.values).unfold(0, dataset.seq_length, 1)
    for _ in range(steps):
        windows = rows[:, -dataset.seq_length :]
        centre, unit = dataset.centre_and_unit(windows[:, -1:])
        x = ((windows - centre) / unit).float()[..., None]
        output = torch.cat([model(part.to(device)).cpu() for part in x.split(1024)])
        rows = torch.cat([rows, centre + unit * output.double()], dim=1)
    return rows[:, dataset.seq_length :].numpy()


def test(model, test_set, steps=1):
    """How good a model is on a StockDataset, beside the naive forecast: a dict of figures.

    They are those of score, in the unit of the values, which a DataLoader does not know: a float
    each, or for several steps ahead an array (steps,); and t, that of diebold_mariano against the
    naive forecast, one step ahead.
    Raises UserError as score does.
    """
    found = errors_by_step(model, test_set, steps)
    figures = [score(error, naive) for error, naive, _ in found]
    error, naive, _ = found[0]
    t = {"t": diebold_mariano(error, naive)}
    if steps == 1:
        return figures[0] | t
    return {name: np.array([each[name] for each in figures]) for name in figures[0]} | t


def errors_by_step(model, dataset, steps=1):
    """True value less forecast 1, 2, ... steps after every window that has a value there: a list.

    For each step, arrays of the errors of the model, of the errors of the naive forecast, which is
    the last value of the window, and of the units of the windows.
    """
    found = []
    for step, predicted in enumerate(forecast(model, dataset, steps).T):
        true = dataset.values[dataset.seq_length + step :]
        last = dataset.values[dataset.seq_length - 1 :][: len(true)]
        _, unit = dataset.centre_and_unit(last)
        found.append((true - predicted[: len(true)], true - last, unit))
    return found


def intervals(model, val_set, steps=1):
    """Where 80 % of the errors on the validation set lay, for each step ahead: (steps, 2).

    They are the quantiles 0.1 and 0.9 of the errors in units of their windows, nan where there are
    fewer than 30: a value is expected from forecast + unit * low to forecast + unit * high.
    """
    found = []
    for error, _, unit in errors_by_step(model, val_set, steps):
        is_enough = len(error) >= 30
        found.append(np.quantile(error / unit, [0.1, 0.9]) if is_enough else [math.nan] * 2)
    return np.array(found)


def shares_inside(model, test_set, found):
    """The share of the values that lay in such intervals, for each step ahead: (steps,)."""
    shares = []
    for (error, _, unit), (low, high) in zip(errors_by_step(model, test_set, len(found)), found):
        is_inside = (low <= error / unit) & (error / unit <= high)
        shares.append(math.nan if math.isnan(low) else np.mean(is_inside))
    return np.array(shares)


def errors_of(model, test_set, train_set):
    """True value less forecast at every target, (N - T,), of the model and of simple forecasts.

    These are naive, the last value; drift, which adds the mean change of a training set; and
    linear, a weighted sum of the window and 1, with the least squared error on it.
    """
    ((error, naive, unit),) = errors_by_step(model, test_set)
    x, target = train_set[:]
    drift = (target - x[:, -1]).mean().item()
    weights = torch.linalg.pinv(with_one(x)) @ target.double()  # (T + 1, 1)
    x, target = test_set[:]
    linear_error = target.double() - with_one(x) @ weights
    return {
        "model": error,
        "naive": naive,
        "drift": naive - unit * drift,
        "linear": unit * linear_error[:, 0].numpy(),
    }


def with_one(x):
    """The values of each window and a 1: (B, T, 1) to (B, T + 1)."""
    return nn.functional.pad(x[..., 0].double(), (0, 1), value=1.0)


def score(error, naive):
    """Figures of the errors (N,) of a forecast, beside those of the naive forecast.

    rmse is in the values' unit, theil_u is rmse / that of the naive, and direction is the share of
    moves whose sign was forecast (nan for a forecast that sees no move). Raises UserError where no
    value has moved.
    """
    if not np.any(naive**2):
        raise UserError(
            "no value to test on, or none that differs from the last one of its window: "
            "take more values, or fewer --steps"
        )
    forecast_move = naive - error  # the error of the last value is the move itself
    is_right = np.sign(forecast_move) == np.sign(naive)
    return {
        "rmse": rms(error),
        "theil_u": rms(error) / rms(naive),
        "direction": float(is_right[naive != 0].mean()) if forecast_move.any() else math.nan,
    }


def rms(error):
    """The root of the mean of the squares."""
    return math.sqrt(np.mean(error**2))


def diebold_mariano(error, other):
    """The statistic of Diebold and Mariano (1995), one step ahead, of two forecasts' errors (N,).

        d_i = other_i^2 - error_i^2        t = mean(d) / (std(d) / sqrt(N))

    It is 0 where d is always the same; above T_CRITICAL the first is better, below it worse.
    """
    d = other**2 - error**2
    return float(d.mean() / (d.std(ddof=1) / math.sqrt(len(d)))) if d.std() else 0.0


# Student's limit: |t| of 30 values exceeds it by chance in 1 of 20 tests, of more less often.
T_CRITICAL = 2.05
BASELINES = {"naive": "the last value", "drift": "drift", "linear": "the straight line"}


def verdict(errors):
    """What a test comes to, in one sentence, by the errors of all forecasts.

    A gain of less than 0.1 % is not called better.
    """
    if len(errors["model"]) < 30:
        return f"Too few values to tell: {len(errors['model'])}, and 30 are needed."
    size = {name: rms(error) for name, error in errors.items()}
    t = {name: diebold_mariano(errors["model"], errors[name]) for name in BASELINES}
    unbeaten = [
        name for name in BASELINES if t[name] <= T_CRITICAL or size["model"] > 0.999 * size[name]
    ]
    strongest = min(unbeaten or BASELINES, key=size.get)
    if "naive" in unbeaten:
        strongest = "naive"
    is_worse = t[strongest] < -T_CRITICAL and size["model"] >= 1.001 * size[strongest]
    gain = 1 - size["model"] / size["naive"]
    if strongest == "naive" and is_worse:
        return f"Worse than the last value: its error is {-gain:.1%} larger."
    if "naive" in unbeaten:
        return (
            "No evidence that it is better than the last value: "
            "the difference is too small, or chance often makes such a one."
        )
    if unbeaten:
        but = "worse than" if is_worse else "not shown to be better than"
        return f"Better than the last value ({gain:.1%} smaller), but {but} {BASELINES[strongest]}."
    return (
        f"Better than all three simple forecasts: its error is "
        f"{1 - size['model'] / size[strongest]:.1%} smaller than that of {BASELINES[strongest]}."
    )


def print_test(title, model, train_set, val_set, test_set, steps=1):
    """Print the figures of each forecast of a test, those of several steps, and the verdict."""
    errors = errors_of(model, test_set, train_set)
    naive = errors["naive"]
    figures = [score(error, naive) for error in errors.values()]
    theil_u = np.atleast_1d(test(model, test_set, steps)["theil_u"])
    shares = shares_inside(model, test_set, intervals(model, val_set, steps))
    t = [diebold_mariano(errors["model"], errors[name]) for name in BASELINES]
    print(f"\ntest on {len(naive):,} {title}\n")
    print_row("", errors)
    print_row("root mean square error", [f"{each['rmse']:,.6g}" for each in figures])
    print_row("Theil U, error / naive error", [f"{each['theil_u']:.4f}" for each in figures])
    print_row("moves with the right sign", [f"{each['direction']:.1%}" for each in figures])
    print_row("Diebold-Mariano t of model", ["-", *(f"{value:.2f}" for value in t)])
    print()
    print_row("steps ahead", map(str, range(1, steps + 1)))
    print_row("U at that step", [f"{each:.4f}" for each in theil_u])
    print_row("inside the 80 % interval", [f"{share:.1%}" for share in shares])
    print(f"\n{verdict(errors)}")


def print_row(label, cells):
    """Print a row of a table."""
    print(f"{label:<30}" + "".join(f"{cell.replace('nan%', '-'):>12}" for cell in cells))


def draw_picture(settings, model, train_set, test_set):
    """Draw the forecasts of a test beside the true values, where the settings ask for a picture.

    Of the simple forecasts the naive one is drawn, and the one with the smallest error. UserError
    where matplotlib is missing, or a file is there that the run of the settings has not drawn.
    """
    path = settings.plot
    if not path:
        return
    if not path.endswith((".png", ".svg", ".pdf")):
        raise UserError(f"--plot must end in .png, .svg or .pdf, not {path}")
    if os.path.lexists(path) and os.path.abspath(path) != settings.drawn:
        raise UserError(f"--plot {path} is there, and no picture of this run: name another")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError(f"--plot needs matplotlib: pip install matplotlib ({error})") from None

    true = test_set.values[test_set.seq_length :]
    errors = errors_of(model, test_set, train_set)
    size = {name: rms(errors[name]) for name in BASELINES}
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    axes.plot(true, label="true")
    axes.plot(true - errors["model"], label="predicted")
    for name in dict.fromkeys(["naive", min(size, key=size.get)]):
        axes.plot(true - errors[name], ":", label=f"{name}: {BASELINES[name]}")
    column = settings.column.replace("$", r"\$")  # what stands between two would be a formula
    axes.set(xlabel="row of the test part", ylabel=column, xmargin=0)
    axes.legend()
    picture = io.BytesIO()
    figure.savefig(picture, format=path[-3:])
    write_whole(path, picture.getvalue(), replace=True)
    settings.drawn = os.path.abspath(path)


# --------------------------------------------------------------------------------------------------
# Files: from a CSV file to an array of values, the oldest first

KLINE = ["open_time", "open", "high", "low", "close", "volume", *"------"]  # as Binance has them
KLINE_ROW = re.compile(r"([\d.]+,){11}[\d.]+\s*")
WRITTEN_NUMBER = re.compile(  # -$1,403.13, 1 403 131 or 5 €
    r"(?=.*\d)\s*[$€£¥]?\s*[-+]?[$€£¥]?(\d*|[1-9]\d{0,2}([, '\xa0])\d{3}(\2\d{3})*)(\.\d*)?"
    r"\s*[$€£¥]?\s*"
)
UNCLEAR = re.compile(r"\D*[1-9]\d{0,2}[.,]\d{3}\D*")  # 1,403 and 1.403
SAYS_TIME = re.compile(
    r"(?<![^\W\d_])(date|time|datetime|timestamp|year|quarter|month|week|day|hour|minute|period|"
    r"unix|epoch|ts|fecha|datum|jahr|monat|año|année)(?![^\W\d_])"
)
MONTHS = (  # English, German, Spanish, Italian, Portuguese and French, four letters each
    "jan feb mar apr may jun jul aug sep oct nov dec jan feb mär apr mai jun jul aug sep okt nov "
    "dez ene feb mar abr may jun jul ago sep oct nov dic gen feb mar apr mag giu lug ago set ott "
    "nov dic jan fev mar abr mai jun jul ago set out nov dez jan fév mar avr mai jun jul aoû sep "
    "oct nov déc "
)
MONTH = re.compile(rf"(?<![^\W\d_])({MONTHS.strip().replace(' ', '|')})[^\W\d_]*")
NUMBER = re.compile(r"(?!\d\d?\.\d{4}$|\d{8}$)-?\d+(\.\d*)?")  # 12.2019 and 31122019 are dates
LIKE_DATE = re.compile(r"(?!.*\d,\d).*(\d{4}|\d\D+\d+\D+\d)")
READINGS = [  # of dates; a month in words has become a number of three digits
    re.compile(rf"\D*{reading}(\D+(?P<hour>\d\d?))?\D*")
    for reading in (
        r"(?P<year>\d{4}|\d\d?(?=-))\D*(?P<month>(?<!\d)\d{3}|\d\d?)(\D*(?P<day>\d\d?))?",
        r"(?P<month>\d\d?\d?)\D+((?P<day>\d\d?)\D+)?(?P<year>\d{4}|\d\d)",
        r"(?P<day>\d\d?)\D+(?P<month>\d\d?\d?)\D+(?P<year>\d{4}|\d\d)",
    )
]
BARE_CLOCK = re.compile(r"\d\d?[ -]?[AaPp][Mm]$|(?<=[ T])\d{6}$")  # 11-PM or 163005
CLOCK = re.compile(  # 16:30:05.123, 4:30 PM, 04:30:00+02:00, 163005
    r"(\d\d?)?:?(\d\d)?:?(\d\d)?(?:[.,](\d+))?[ -]*([ap]m)?\s*(?:z|utc|gmt)?"
    r"(?:([-+])(\d\d):?(\d\d)?)?"
)


def load_prices(path, column="open", order="time", decimal=None):
    """The values in one column of a CSV file: (N,) float64, oldest first.

    By order="time" the columns of times say whether the rows are taken as they stand or reversed;
    nothing is sorted. "file" takes them as they stand, "reversed" the last one first. decimal is
    the decimal sign, "." or ",", where the file leaves it open. How the file was read is told on
    stderr. Raises UserError for whatever could be misread.
    """
    with open(path, encoding="utf-8-sig", newline="") as file:
        try:
            values, times = read_rows(path, file, column.strip(" <>").lower(), decimal)
        except (UnicodeDecodeError, csv.Error) as error:
            raise UserError(
                f"{path} is no CSV file in UTF-8 (a zip or gzip archive, an Excel file?): {error}"
            ) from None
    if order == "time" and times:
        order, repeats = find_order(path, values, times)
        values = np.delete(values, repeats)
    else:
        reverse = ", reversed" * (order == "reversed")
        tell(path, f"no times used: the rows are in the order of the file{reverse}")
    return values[::-1].copy() if order == "reversed" else values


def tell(path, text):
    """Say something about a file on stderr."""
    print(f"{path}: {text}", file=sys.stderr)


def read_rows(path, file, column, decimal):
    """The values of a column, and the cells of each column of times by its name."""
    head = list(islice(file, 50)) or [""]
    names, above, delimiter = find_header(path, head, column)
    rows = csv.DictReader(
        chain(head[above:], file), names, restval="", delimiter=delimiter, strict=True
    )
    values = array("d")  # a list would take four times the memory
    empty = []
    times = {}
    for row in rows:
        cell = row[column]
        value = to_number(cell, decimal)
        if delimiter == ";" and not decimal and UNCLEAR.fullmatch(cell):
            value = math.inf
        line = above + rows.line_num
        if None in row:
            raise UserError(f"{path}, line {line} has more cells than the header has names")
        if math.isinf(value) and "Ticker" not in row.values():  # the second header of yfinance
            raise UserError(
                f"{path}, line {line} has {cell!r:.40}, which is no number like 1403.13, "
                "or could be two: --decimal . or --decimal , says which"
            )
        if not math.isfinite(value):
            empty.append(line)
            continue
        if not values:
            times = {name: [] for name in time_columns(row, column)}
        values.append(value)
        for name, cells in times.items():
            cells.append(row[name])
    if not values:
        raise UserError(f"{path} has no number in column {column!r}")
    if empty:
        tell(path, f"rows without a value: {len(empty):,} skipped, from line {empty[0]} on")
    if all(len(set(cells)) == 1 for cells in times.values()):
        times = {}
    return np.array(values), times


def find_header(path, head, column):
    """The names above the first number in a column, the lines down to them, and the delimiter."""
    found = [], 0, ","
    if KLINE_ROW.fullmatch(head[0]):
        found = KLINE, 0, ","
    for delimiter in ",;\t":
        rows = csv.reader(head, delimiter=delimiter)
        for row in rows:
            if math.isfinite(to_number(dict(zip(found[0], row)).get(column, ""))):
                return found
            names = [name.strip(" <>").lower() for name in row]
            if names.count(column) == 1:
                found = names, rows.line_num, delimiter
    if column not in found[0]:
        raise UserError(
            f"{path} has no column {column!r}, or two: name one with --column. One of the first 50 "
            "lines must name them, divided by commas, semicolons or tabs; "
            f"the first is {head[0]!r:.80}"
        )
    return found


def to_number(cell, decimal=None):
    """A cell as a number; nan where it has no digit, inf where it is none, or could be two."""
    if decimal == ",":
        cell = cell.replace(".", " ").replace(",", ".")
    try:
        return float(cell)
    except ValueError:
        if WRITTEN_NUMBER.fullmatch(cell) and (decimal or not UNCLEAR.fullmatch(cell)):
            return float(re.sub(r"[^-.\d]", "", cell))
        return math.inf if re.search(r"\d", cell) else math.nan


def time_columns(row, column):
    """The names of the columns of times, by what a row has there or by themselves."""
    found = []
    for place, (name, cell) in enumerate(row.items()):
        if NUMBER.fullmatch(cell):
            is_time = place == 0 and float(cell) > 1e8  # since 1970
        else:
            is_time = LIKE_DATE.match(cell) and steps_of([cell])
        if name != column and (is_time or SAYS_TIME.search(name)):
            found.append(name)
    return found


def find_order(path, values, times):
    """The order of the rows, "file" or "reversed", and which of them repeat the one before.

    Each column of times is tried alone, and joined to others where none puts the rows in order.
    All readings that do so must agree.
    """
    for width in (1, 2, 3):
        found = {}
        for names in permutations(times, width):
            cells = [" ".join(parts) for parts in zip(*(times[name] for name in names))]
            for steps in steps_of(cells):
                stands = steps == 0
                repeats = stands & (np.diff(values) == 0)
                is_one_series = stands.sum() - repeats.sum() <= len(cells) / 100
                rises = 1 in steps
                if rises != (-1 in steps) and is_one_series:
                    order = "file" if rises else "reversed"
                    found[order] = names, cells[:: 1 if rises else -1], stands, repeats
        if found:
            break
    if len(found) != 1:
        often, count = Counter(cells).most_common(1)[0]
        raise UserError(
            f"{path}: {' '.join(names)!r}, from {cells[0]!r} to {cells[-1]!r}, is in no order, or "
            f"cannot be read ({often!r} is there {count} times: above 1, are there several series "
            "in one file?); --order file takes the rows as they stand, --order reversed the last "
            "first"
        )
    ((order, (names, cells, stands, repeats)),) = found.items()
    tell(path, f"order of {' '.join(names)!r} ({order}): oldest {cells[0]}, newest {cells[-1]}")
    if stands.any():
        tell(
            path,
            f"rows with the time of the row before, which is there twice: {stands.sum():,}; of "
            f"them skipped, as the value is the same: {repeats.sum():,}",
        )
    return order, np.flatnonzero(repeats) + 1


def steps_of(cells):
    """Whether times rise (1), fall (-1) or stand still (0), by each reading: arrays."""
    found = []
    for reading in READINGS:
        times = (read_time(cell, reading) for cell in cells)
        with suppress(ValueError):
            signs = [(now > before) - (now < before) for before, now in pairwise(times)]
            found.append(np.array(signs))
    return found


def read_time(cell, reading):
    """A time in nanoseconds; ValueError where it cannot be read so."""
    before, colon, _ = cell.partition(":")
    day = before.rstrip("0123456789") if colon else BARE_CLOCK.sub("", cell)
    return read_date(day, reading) + read_clock(cell[len(day) :])


@lru_cache(100_000)
def read_clock(text):
    """A time of day in nanoseconds, in UTC where it says how far it is from it."""
    found = CLOCK.fullmatch(text.lower().strip())
    if not found:
        raise ValueError(text)
    hour, minute, second, fraction, half, sign, hours, minutes = found.groups("0")
    hour = int(hour)
    if half != "0":
        hour = hour % 12 + 12 * (half == "pm")
    minutes_ahead = int(sign + hours) * 60 + int(sign + minutes)  # of UTC
    seconds = (hour * 60 + int(minute) - minutes_ahead) * 60 + int(second)
    return seconds * 10**9 + int(fraction.ljust(9, "0"))


@lru_cache(100_000)
def read_date(text, reading):
    """A date in nanoseconds; a number alone is a year, or a time since 1970."""
    text = MONTH.sub(month_number, text.strip().lower())
    if NUMBER.fullmatch(text):
        return since_1970(text)
    if not re.search(r"\d", text):
        return 0  # a time of day alone
    found = reading.fullmatch(text)
    if not found:
        raise ValueError(text)
    year = int(found["year"])
    month = int(found["month"])
    if year < 100:
        year += 2000 if year < 70 else 1900
    if found["day"]:
        day = date(year, month, int(found["day"])).toordinal()
    else:  # a quarter, month or week counts as a day of its year: only the order matters
        day = date(year, 1, 1).toordinal() + month
    hours = day * 24 + int(found["hour"] or 0)
    return hours * 3600 * 10**9


def month_number(found):
    """A month in words as a number of three digits, which can be neither year nor day."""
    return f" {MONTHS.index(found[1]) // 4 % 12 + 1:03} "


def since_1970(digits):
    """A number of seconds, of thousandths or finer, in one unit; a year as it is."""
    number = float(digits) if "." in digits else int(digits)
    while 10**8 < number < 10**17:
        number *= 1000
    return number


# --------------------------------------------------------------------------------------------------
# Checkpoint: the settings, the values and the state of a run, in one file

VERSION = 1  # of the settings and of the state


def save_checkpoint(path, settings, values, state, replace=False):
    """Save a run: its settings, its values and its state; returns the name of the file.

    It is the first free one of path, path-2, path-3, ..., and path itself with replace.
    """
    run = {
        "version": VERSION,
        "settings": vars(settings),
        "values": torch.tensor(values),
        "state": state,
    }
    file = io.BytesIO()
    torch.save(run, file)
    return write_whole(path, file.getvalue(), replace)


def load_checkpoint(path):
    """A model with the best weights, and the settings, the values and the state of its run.

    Before the first epoch the state is None, and the model untrained. Nothing in the file is
    executed. Raises UserError for a file that is damaged or of another kind.
    """
    data = Path(path).read_bytes()
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
        if archive.testzip() or any(entry.external_attr for entry in archive.infolist()):
            raise ValueError("it is not as torch wrote it")  # which torch.load does not look at
        saved = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        if saved["version"] != VERSION:
            raise ValueError("it is of another version")
    except Exception as error:  # damaged bytes can make torch raise almost anything
        raise UserError(
            f"{path} is damaged, or no checkpoint of stock_rnn.py: {error!r:.150}"
        ) from error
    settings = argparse.Namespace(**saved["settings"])
    model = RNN(settings.hidden_size, settings.cell)
    if saved["state"]:
        model.load_state_dict(saved["state"]["best"])
    return model, settings, saved["values"].numpy(), saved["state"]


def write_whole(path, data, replace):
    """Write bytes to a file whole or not at all, and return its name.

    They go to a temporary file beside it, which is then renamed. Without replace, the first free
    name of path, path-2, path-3, ... is taken.
    """
    temporary = f"{path}.{secrets.token_hex(4)}.tmp"
    try:
        Path(temporary).write_bytes(data)
        if not replace:
            path = free_name(path)
        elif os.path.exists(path):
            shutil.copymode(path, temporary)
        os.replace(temporary, path)
        return path
    except OSError as error:
        error.filename = path  # and not the temporary one
        raise
    finally:
        Path(temporary).unlink(missing_ok=True)


def free_name(path):
    """Create the first of path, path-2, path-3, ... that is free, and return its name."""
    stem, ending = os.path.splitext(path)
    number = 1
    while True:
        try:
            open(path, "xb").close()
            return path
        except FileExistsError:
            number += 1
            path = f"{stem}-{number}{ending}"


# --------------------------------------------------------------------------------------------------
# Command line

DATA = Path(__file__).resolve().parent / "data" / "btcusd_20h.csv"


def train_command(args):
    """Start a new run on a file of values, in a checkpoint of its own."""
    if args.prices == str(DATA) and not DATA.exists():
        raise UserError("give a CSV file: python stock_rnn.py train my.csv")
    values = load_prices(args.prices, args.column, args.order, args.decimal)
    return learn(args, values, args.checkpoint)


def resume_command(args):
    """Go on with the run of a checkpoint as if it had not been stopped, or to more epochs."""
    path = args.checkpoint
    if os.path.islink(path):
        path = os.path.realpath(path)
    _, settings, values, state = load_checkpoint(path)
    settings.device = args.device or settings.device
    settings.epochs = args.epochs or settings.epochs
    settings.plot = args.plot
    done = len(state["history"]["val_loss"]) if state else 0
    if settings.epochs < done:
        raise UserError(f"the run is at epoch {done}: {settings.epochs} is too few")
    return learn(settings, values, path, state, replace=True)


def learn(settings, values, path, state=None, replace=False):
    """Train, saving after every epoch, and test; returns the exit status."""
    train_set, val_set, test_set = parts_of(settings, values)
    check_device(settings.device)
    torch.manual_seed(settings.seed)
    model = RNN(settings.hidden_size, settings.cell).to(settings.device)
    optimizer_and_scheduler = adamw(model, settings.epochs, settings.learning_rate)
    test(model, test_set)  # what cannot be tested, drawn or written shows before training
    draw_picture(settings, model, train_set, test_set)
    path = save_checkpoint(path, settings, values, state, replace)
    print(
        f"{Path(settings.prices).name}, {settings.column}, {train_set.normalise}, saved in {path}\n"
        f"{len(train_set):,} to train on, {len(val_set):,} to validate, "
        f"{len(test_set):,} to test\n\n"
        f"{'epoch':>8}{'training loss':>16}{'validation loss':>18}{'of the naive':>15}"
    )
    if state and len(state["history"]["val_loss"]) == settings.epochs:
        print(f"the run has ended at epoch {settings.epochs}")
    loaders = (
        DataLoader(train_set, settings.batch_size, shuffle=True),
        DataLoader(val_set, 1024),
    )
    report = partial(save_and_report, path, settings, values, val_set)
    try:
        train(
            model, *loaders, nn.MSELoss(), *optimizer_and_scheduler, settings.epochs, report, state
        )
    except KeyboardInterrupt:
        print(f"\nstopped: all up to the last epoch is saved in {path}")
        print(f"to go on:  {command_line('resume', path)}")
        return 130
    print_result(path)
    return 0


def save_and_report(path, settings, values, val_set, state):
    """Save after every epoch, and print about a dozen rows in all."""
    save_checkpoint(path, settings, values, state, replace=True)
    epoch = len(state["history"]["val_loss"])
    if epoch == settings.epochs or epoch % math.ceil(settings.epochs / 12) == 0:
        print_epoch(epoch, state, val_set)


def print_epoch(epoch, state, val_set, remark=""):
    """Print the row of an epoch; that of epoch 0, the untrained model, has no training loss."""
    train_loss = [math.nan, *state["history"]["train_loss"]][epoch]
    val_loss = [state["best_loss"], *state["history"]["val_loss"]][epoch]
    x, target = val_set[:]
    share = val_loss / nn.functional.mse_loss(x[:, -1], target)
    row = f"{epoch:>8}{train_loss:>16.6f}{val_loss:>18.6f}{share:>15.4f}"
    print(row.replace("nan", "  -") + remark, flush=True)


def print_result(path):
    """Print and draw how well the weights of the best epoch do on the test part."""
    model, settings, values, state = load_checkpoint(path)
    train_set, val_set, test_set = parts_of(settings, values)
    epoch = state["best_epoch"]
    print_epoch(epoch, state, val_set, "  used: the lowest")
    draw_picture(settings, model, train_set, test_set)
    untrained = " (untrained)" * (epoch == 0)
    title = f"values never seen, by the weights of epoch {epoch}{untrained}"
    print_test(title, model, train_set, val_set, test_set)
    if os.path.isfile(settings.prices):  # a pipe cannot be read again
        print(f"\nfor the next value:\n{command_line('predict', path, settings.prices)}")


def parts_of(settings, values):
    """The training, validation and test set of the values of a run."""
    return split(
        values,
        settings.seq_length,
        settings.val_fraction,
        settings.test_fraction,
        settings.normalise,
    )


def check_device(device):
    """UserError for a device that torch does not have here."""
    try:
        torch.ones(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {device}: {str(error).splitlines()[0]}") from None


def command_line(*words):
    """A command of this script as one types it."""
    return shlex.join(["python", sys.argv[0], *words])


def test_command(args):
    """Test a model on all values of a file that it was not trained on."""
    model, settings, values, found = loaded(args)
    train_set, val_set, test_set = parts_of(settings, values)
    found = after(values[: -len(test_set)], found, settings.seq_length)
    test_set = train_set.with_values(found)
    print_test("values of this file", model, train_set, val_set, test_set, args.steps)


def predict_command(args):
    """Print the values after the last row of a file, one a line, with low and high."""
    model, settings, values, found = loaded(args)
    train_set, val_set, _ = parts_of(settings, values)
    window = train_set.with_values(found[-settings.seq_length :])
    _, unit = window.centre_and_unit(found[-1])
    print("value, low and high: 80 % of the validation errors lay between", file=sys.stderr)
    forecasts = forecast(model, window, args.steps)[-1]
    for value, interval in zip(forecasts, intervals(model, val_set, args.steps)):
        print(*map(plain, [value, *(value + unit * interval)]))


def plain(value):
    """A number in plain digits, ten of them at most; a dash where there is none."""
    digits = np.format_float_positional(value, precision=10, fractional=False, trim="-")
    return digits.replace("nan", "-")


def loaded(args):
    """A model, its settings and its values, and the values of a file."""
    model, settings, values, _ = load_checkpoint(args.checkpoint)
    learned = f"{settings.column} of {Path(settings.prices).name}"
    print(f"{args.checkpoint} has learned from {learned}", file=sys.stderr)
    found = load_prices(
        args.prices,
        args.column or settings.column,
        args.order or settings.order,
        args.decimal or settings.decimal,
    )
    return model, settings, values, found


def after(seen, found, seq_length):
    """Of the values in a file what follows the seen ones, with a window before it, or all.

    The seen ones end where the last of them stand, a window of them, and 10 at least: the last time
    up to their place among the seen, else the first time after it.
    """
    found_bytes = found.tobytes()
    if found_bytes in seen.tobytes():
        raise UserError("the model was trained on all of these values")
    end = seen[-max(seq_length, 10) :]
    at = found_bytes.rfind(end.tobytes(), 0, seen.nbytes)
    if at < 0:
        at = found_bytes.find(end.tobytes())
    if at < 0:
        return found
    start = at // found.itemsize + len(end)
    print(
        f"the first {start:,} values end where those that the model has seen do: the rest is tested"
    )
    return found[start - seq_length :]


def positive(text, least=1):
    """A whole number, from least to a billion."""
    number = int(text) if text.isdecimal() else -1
    if not least <= number <= 10**9:
        raise argparse.ArgumentTypeError(f"must be a whole number from {least} on, not {text:.40}")
    return number


non_negative = partial(positive, least=0)


def add_train(train):
    """The arguments of the command train."""
    add = train.add_argument
    add("prices", nargs="?", default=str(DATA), help="CSV file")
    add("--normalise", default="auto", choices=["auto", *NORMALISE], help="see StockDataset (auto)")
    add("--cell", default="rnn", choices=CELLS, help="kind of hidden layer (rnn)")
    add("--hidden-size", type=positive, default=32, help="hidden units (32)")
    add("--seq-length", type=positive, default=20, help="values in a window (20)")
    add("--batch-size", type=positive, default=32, help="windows in a batch (32)")
    add("--learning-rate", type=float, default=3e-3, help="AdamW's, falls to 0 (0.003)")
    add("--val-fraction", type=float, default=0.15, help="share of the values (0.15)")
    add("--test-fraction", type=float, default=0.15, help="share of the values (0.15)")
    add("--epochs", type=positive, default=100, help="passes over the training part (100)")
    add("--seed", type=non_negative, default=0, help="of the random numbers (0)")
    add("--device", default="cpu", help="where torch computes: cpu, cuda, mps (cpu)")
    add("--checkpoint", default="stock_rnn.pt", help="file to save in, or NAME-2.pt, and so on")
    add("--plot", help="file for a picture of the test; needs matplotlib")
    train.set_defaults(drawn=None)


def add_reading(command, column, order):
    """The arguments that say how a file is read."""
    add = command.add_argument
    add("--column", default=column, help="column of the values (in training: open)")
    add(
        "--order",
        default=order,
        choices=["time", "file", "reversed"],
        help="of the rows (in training: time)",
    )
    add("--decimal", choices=[".", ","], help="the decimal sign, where it is not certain")


def parse(argv):
    """The arguments of the command line; a command that is left out is train."""
    meaning = "Next-value prediction with a recurrent network in torch."
    parser = argparse.ArgumentParser(prog="stock_rnn.py", description=meaning)
    commands = parser.add_subparsers(title="commands", dest="command")
    train = commands.add_parser("train", help="learn from values (also without a command)")
    add_train(train)
    add_reading(train, "open", "time")
    resume = commands.add_parser("resume", help="go on with a run that was stopped")
    resume.add_argument("checkpoint", help="file that train has saved, and that is gone on with")
    resume.add_argument("--epochs", type=positive, help="epochs in all")
    resume.add_argument("--device", help="where torch computes (as before)")
    resume.add_argument("--plot", help="file for a picture, as in train")
    test = commands.add_parser("test", help="measure how well a model predicts other values")
    predict = commands.add_parser("predict", help="print the values after the last row")
    for command in (test, predict):
        command.add_argument("checkpoint", help="file that train has saved")
        command.add_argument("prices", help="CSV file")
        command.add_argument("--steps", type=positive, default=1, help="values ahead (1)")
        add_reading(command, None, None)  # as in training
    if not argv or argv[0] not in (*commands.choices, "-h", "--help"):
        argv = ["train", *argv]
    return parser.parse_args(argv)


def main(argv):
    """Run the command line; the exit status is 2 after a mistake, told in one line."""
    args = parse(argv)
    commands = {
        "train": train_command,
        "resume": resume_command,
        "test": test_command,
        "predict": predict_command,
    }
    try:
        return commands[args.command](args)
    except KeyboardInterrupt:
        return 130
    except RuntimeError as error:
        if "llocate" not in str(error):  # torch has no class of its own for a full memory
            raise
        message = "out of memory"
    except (UserError, OSError, MemoryError) as error:
        message = str(error) or "out of memory"
    print(f"stock_rnn.py: error: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # exit silently when "| head" is done
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding=None if stream.isatty() else "utf-8", errors="replace")
    sys.exit(main(sys.argv[1:]))
