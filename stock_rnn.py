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
import signal
import sys
import zipfile
from array import array
from dataclasses import dataclass
from datetime import datetime, timezone
from itertools import chain, islice
from pathlib import Path

# One thread: on a busy machine, threads that wait for each other are 10 to 50 times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import nn
from torch.optim.lr_scheduler import ConstantLR, LambdaLR
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, SequentialSampler


class Mistake(ValueError):
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

    Fit scale and middle to the training part, and take them for the others, as `like` does.
    Raises Mistake for values that are no series (N,), too few, not finite, all alike, or not above
    zero (relative).
    """

    def __init__(self, values, seq_length, normalise="relative", scale=None, middle=0.0):
        self.values = np.array(values, np.float64)
        self.seq_length = seq_length
        self.normalise = normalise
        self.scale = scale
        self.middle = middle
        if normalise not in NORMALISE:
            raise Mistake(f"normalise must be one of {', '.join(NORMALISE)}, not {normalise}")
        if self.values.ndim != 1:
            raise Mistake(f"values must be one series (N,), not an array {self.values.shape}")
        if len(self.values) < seq_length + (scale is None):
            raise Mistake(f"{len(self.values)} values are too few for a window of {seq_length}")
        low = self.values.min()
        high = self.values.max()
        if not abs(low) + abs(high) < 1e100:
            raise Mistake(f"values must be finite numbers below 1e100, not from {low} to {high}")
        if normalise == "relative" and low <= 0:
            raise Mistake(f"{low:g} is not above zero: train with --normalise difference")
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
            raise Mistake(f"values from {low:g} to {high:g} all change alike: nothing to learn")

    def like(self, values):
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

    def centre_and_unit(self, last):
        """The two numbers of the table for windows that end in the value `last`."""
        if self.normalise == "relative":
            return last, self.scale * last
        if self.normalise == "difference":
            return last, self.scale
        return self.middle, self.scale


def split(values, seq_length, val_fraction=0.15, test_fraction=0.15, normalise=None):
    """Training, validation and test set in the order of time, by the scale of the training part.

    The last test_fraction of the values are the targets of the test set, those before them of the
    validation set; first windows look back into the part before. Without normalise, it is relative
    if all values of the training part are above zero, else difference. Raises Mistake where a part
    would be empty.
    """
    test_start = len(values) - int(len(values) * test_fraction)
    val_start = test_start - int(len(values) * val_fraction)
    if not seq_length < val_start < test_start < len(values):
        raise Mistake(
            f"{len(values)} values in windows of --seq-length {seq_length}, and fractions "
            f"of {val_fraction} and {test_fraction}, leave a part without target: take smaller ones"
        )
    if normalise is None:
        normalise = "relative" if np.min(values[:val_start]) > 0 else "difference"
    train_set = StockDataset(values[:val_start], seq_length, normalise)
    val_set = train_set.like(values[val_start - seq_length : test_start])
    test_set = train_set.like(values[test_start - seq_length :])
    return train_set, val_set, test_set


def batches(dataset, batch_size, shuffle=False):
    """A DataLoader that asks the dataset for whole batches, which is faster than item by item.

    Its sampler gives lists of indices, and so batch_size is None. Only with shuffle are random
    numbers drawn.
    """
    order = RandomSampler(dataset) if shuffle else SequentialSampler(dataset)
    sampler = BatchSampler(order, batch_size, False)
    return DataLoader(dataset, batch_size=None, sampler=sampler, generator=torch.Generator())


# --------------------------------------------------------------------------------------------------
# Model

CELLS = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}


class RNN(nn.Module):
    """A tanh RNN over the window and a linear layer on its last step, (B, T, 1) to (B, 1).

        a_t = tanh(Waa a_{t-1} + Wax x_t + ba)        y = Wya a_T + by

    The cells gru and lstm have gates. The linear layer starts at zero, so that where the centre is
    the last value the untrained model is the naive forecast, and training improves on that. Raises
    Mistake for another cell.
    """

    def __init__(self, hidden_size=32, cell="rnn"):
        super().__init__()
        if cell not in CELLS:
            raise Mistake(f"cell must be one of {', '.join(CELLS)}, not {cell}")
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
    criterion=None,
    optimizer=None,
    scheduler=None,
    epochs=100,
    report=None,
    state=None,
):
    """Minimise a loss; returns {"train_loss": [...], "val_loss": [...]}, a number for each epoch.

    The loaders give batches (x, target). Unless they are given, the loss is the mean squared error,
    and optimiser and scheduler are those of adamw; a loss of your own must be a mean, too. An
    optimiser of your own keeps its rate, unless a scheduler of torch comes with it, which is
    stepped once an epoch, without a metric. The model ends with the weights whose validation loss
    was lowest, which may be those that it came with.

    report(state) is called after every epoch. Such a state, passed back, goes on from there: on the
    CPU to the same bits, with loaders that draw from torch's own random numbers (the state of a
    generator of your own is not kept: a resumed run sees another order). A seed set before the
    model is made repeats everything on the same machine. Raises Mistake for a loss that is not
    finite.
    """
    criterion = criterion or nn.functional.mse_loss
    optimizer = optimizer or getattr(scheduler, "optimizer", None)
    if optimizer is None:
        optimizer, scheduler = adamw(model, epochs)
    scheduler = scheduler or ConstantLR(optimizer, 1)
    parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    state = copy.deepcopy(state) or new_state(parts, val_loader, criterion)
    for name, part in parts.items():
        part.load_state_dict(state[name])
    history = state["history"]
    for epoch in range(len(history["val_loss"]), epochs):
        torch.set_rng_state(state["random"])  # whatever report has drawn, training goes on alike
        train_loss = train_epoch(model, train_loader, criterion, optimizer)
        scheduler.step()
        val_loss, _ = evaluate(model, val_loader, criterion)
        if not math.isfinite(train_loss + val_loss):
            raise Mistake(f"no finite loss in epoch {epoch + 1}: try a lower learning rate")
        history["train_loss"].append(train_loss)
        history["val_loss"].append(val_loss)
        state |= snapshot(parts)
        if val_loss < state["best_loss"]:
            state |= {"best": state["model"], "best_loss": val_loss, "best_epoch": epoch + 1}
        if report:
            report(copy.deepcopy(state))
    model.load_state_dict(state["best"])
    return history


def adamw(model, epochs, learning_rate=3e-3):
    """AdamW, and the scheduler that lets its rate fall by half a cosine to zero."""
    optimizer = torch.optim.AdamW(model.parameters(), learning_rate, weight_decay=0.1)
    return optimizer, LambdaLR(
        optimizer, lambda epoch: (1 + math.cos(math.pi * epoch / epochs)) / 2
    )


def new_state(parts, val_loader, criterion):
    """Where a training starts: the untrained model is the first that may turn out the best."""
    state = snapshot(parts)
    val_loss, _ = evaluate(parts["model"], val_loader, criterion)
    state |= {"best": state["model"], "best_loss": val_loss, "best_epoch": 0}
    return state | {"history": {"train_loss": [], "val_loss": []}}


def snapshot(parts):
    """A copy of the state of model, optimiser and scheduler, and of torch's random numbers."""
    state = {name: part.state_dict() for name, part in parts.items()}
    return copy.deepcopy(state | {"random": torch.get_rng_state()})


def train_epoch(model, loader, criterion, optimizer):
    """One pass over the batches of a loader; returns the mean loss."""
    model.train()
    total = 0.0
    count = 0
    for batch in loader:
        loss, output = loss_and_output(model, batch, criterion)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item() * len(output)
        count += len(output)
    return total / count


def loss_and_output(model, batch, criterion):
    """The loss of a model on a batch (x, target), and its outputs."""
    device = next(model.parameters()).device
    x, target = (part.to(device) for part in batch)
    output = model(x)
    shape = getattr(output, "shape", type(output).__name__)
    if shape != target.shape:  # torch would broadcast them, and learn something else
        raise Mistake(f"the model answers {shape}, and must answer a tensor of {target.shape}")
    return criterion(output, target), output


@torch.no_grad()
def evaluate(model, loader, criterion=nn.functional.mse_loss):
    """The mean loss over the batches of a loader, in eval mode, and the outputs in its order."""
    model.eval()
    losses, outputs = zip(*(loss_and_output(model, batch, criterion) for batch in loader))
    loss = np.average([loss.item() for loss in losses], weights=[len(part) for part in outputs])
    return float(loss), torch.cat(outputs)


# --------------------------------------------------------------------------------------------------
# Test and forecast


@torch.no_grad()
def forecast(model, dataset, steps=1):
    """The values after every window, (N - T + 1, steps); each is fed back for the next.

    The last row is what comes after the last value.
    """
    model.eval()
    device = next(model.parameters()).device
    windows = torch.from_numpy(dataset.values).unfold(0, dataset.seq_length, 1)
    found = []
    for _ in range(steps):
        centre, unit = dataset.centre_and_unit(windows[:, -1:])
        x = ((windows - centre) / unit).float()[..., None]
        output = torch.cat([model(part.to(device)).cpu() for part in x.split(1024)])
        found.append(centre + unit * output.double())
        windows = torch.cat([windows[:, 1:], found[-1]], dim=1)
    return torch.cat(found, dim=1).numpy()


def test(model, test_set):
    """How good a model is on a StockDataset, beside the naive forecast: a dict of figures.

    They are those of `score` and the t of `diebold_mariano`, in the unit of the values, which a
    DataLoader does not know: for the mean loss on its batches call evaluate(model, loader).
    """
    error, naive = errors_of(model, test_set).values()
    return score(error, naive) | {"t": diebold_mariano(error, naive)}


def errors_of(model, test_set, train_set=None):
    """Forecast less true value at every target, (N - T,): of the model and of simple forecasts.

    These are naive, the last value, and with a training set to fit them to drift and linear. Raises
    Mistake where the values never move.
    """
    true = test_set.values[test_set.seq_length :]
    last = test_set.values[test_set.seq_length - 1 : -1]
    # The last window has no target.
    errors = {"model": forecast(model, test_set)[:-1, 0] - true, "naive": last - true}
    if not np.any(errors["naive"] ** 2):
        raise Mistake("no value to test on differs from the one before: nothing to predict")
    if train_set:
        drift, weights = simple_forecasts(train_set)
        centre, unit = test_set.centre_and_unit(last)
        output = with_one(test_set[:][0]) @ weights
        errors["drift"] = errors["naive"] + unit * drift
        errors["linear"] = centre + unit * output.numpy() - true
    return errors


def simple_forecasts(train_set):
    """Of a training set, in its normalised values: the mean change, and weights, (T + 1,).

    They are those of a window and of 1 whose sum has the least squared error.
    """
    x, target = train_set[:]
    weights, *_ = np.linalg.lstsq(with_one(x).numpy(), target[:, 0].double().numpy(), rcond=None)
    return (target - x[:, -1]).mean().item(), torch.from_numpy(weights)


def with_one(x):
    """The values of each window and a 1: (B, T, 1) to (B, T + 1)."""
    return nn.functional.pad(x[..., 0].double(), (0, 1), value=1.0)


def score(error, naive):
    """Figures of the errors (N,) of a forecast, beside those of the naive forecast.

    rmse is in the values' unit, theil_u is rmse / that of the naive, and direction is the share of
    moves whose sign was forecast (nan for a forecast that sees no move).
    """
    right = np.sign(error - naive) == np.sign(-naive)  # the move as it was forecast, and as it was
    return {
        "rmse": rms(error),
        "theil_u": rms(error) / rms(naive),
        "direction": float(np.mean(right[naive != 0])) if np.any(error != naive) else math.nan,
    }


def rms(error):
    """The root of the mean of the squares."""
    return math.sqrt(np.mean(error**2))


def diebold_mariano(error, other):
    """The statistic of Diebold and Mariano (1995), one step ahead, of two forecasts' errors (N,).

        d_i = other_i^2 - error_i^2        t = mean(d) / (std(d) / sqrt(N))

    It is 0 where d is always the same; above T_LIMIT the first is better, below -T_LIMIT worse.
    """
    d = other**2 - error**2
    return float(d.mean() / (d.std(ddof=1) / math.sqrt(len(d)))) if d.std() else 0.0


# Student's limit: |t| of 30 values exceeds it by chance in 1 of 20 tests, of more less often.
T_LIMIT = 2.05
WORDS = {"naive": "the last value", "drift": "drift", "linear": "the straight line"}


def verdict(errors):
    """What a test comes to, in one sentence, by the errors of all forecasts.

    A gain of less than 0.1 % is not called better.
    """
    if len(errors["model"]) < 30:
        return f"Too few values to tell: {len(errors['model'])}, and 30 are needed."
    gains = {name: 1 - rms(errors["model"]) / rms(errors[name]) for name in WORDS}
    t = {name: diebold_mariano(errors["model"], errors[name]) for name in WORDS}
    left = [name for name in WORDS if t[name] <= T_LIMIT or gains[name] < 0.001]  # not beaten
    worse = [name for name in WORDS if t[name] < -T_LIMIT and gains[name] <= -0.001]
    if "naive" in worse:
        return f"Worse than the last value: its error is {-gains['naive']:.1%} larger."
    if "naive" in left:
        return (
            "No evidence that it is better than the last value: "
            "the difference is too small, or chance often makes such a one."
        )
    if left:
        hardest = min(left, key=t.get)
        but = "worse than" if hardest in worse else "not shown to be better than"
        gain = f"{gains['naive']:.1%} smaller"
        return f"Better than the last value ({gain}), but {but} {WORDS[hardest]}."
    best = min(WORDS, key=gains.get)
    return (
        f"Better than all three simple forecasts: "
        f"its error is {gains[best]:.1%} smaller than that of {WORDS[best]}."
    )


def print_errors(errors, title):
    """Print the figures of each forecast of a test, and what they come to."""
    naive = errors["naive"]
    figures = [score(error, naive) for error in errors.values()]
    t = [diebold_mariano(errors["model"], errors[name]) for name in WORDS]
    print(f"\ntest on {len(naive):,} {title}\n")
    rows = {
        "": errors,
        "root mean square error": [f"{f['rmse']:,.6g}" for f in figures],
        "Theil U, error / naive error": [f"{f['theil_u']:.4f}" for f in figures],
        "moves with the right sign": [f"{f['direction']:.1%}" for f in figures],
        "Diebold-Mariano t of model": ["-", *(f"{value:.2f}" for value in t)],
    }
    for label, cells in rows.items():
        print(f"{label:<30}" + "".join(f"{cell.replace('nan%', '-'):>12}" for cell in cells))
    print(f"\n{verdict(errors)}")


def picture_of(test_set, errors, name, ending):
    """The forecasts of a test beside the true values: the bytes of a picture, as png, svg or pdf.

    Of the simple forecasts the naive one is drawn, and the one with the smallest error.
    """
    from matplotlib.figure import Figure

    true = test_set.values[test_set.seq_length :]
    sizes = {simple: rms(errors[simple]) for simple in WORDS}
    hardest = min(sizes, key=sizes.get)
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    axes.plot(true, label="true")
    axes.plot(true + errors["model"], label="predicted")
    for simple in dict.fromkeys(["naive", hardest]):
        axes.plot(true + errors[simple], ":", label=f"{simple}: {WORDS[simple]}")
    axes.set(xlabel="row of the test part", ylabel=name, xmargin=0)
    axes.legend()
    picture = io.BytesIO()
    figure.savefig(picture, format=ending)
    return picture.getvalue()


# --------------------------------------------------------------------------------------------------
# Files: from a CSV file to an array of values, the oldest first

KLINE = ["open_time", "open", "high", "low", "close", "volume", *[""] * 6]  # as Binance has them
MISSING = {"", "null", "none", "nan", "na", "n/a", "#n/a", "#n/a n/a", "-", ".", "?"}
NUMBER = re.compile(r"[-+]?[$€£¥]? ?([0-9]+|[1-9][0-9]{0,2}(,[0-9]{3})+)(\.[0-9]*)? ?[$€£¥]?")
GROUPED = re.compile(r"[-+]?\d{1,3}([.,]\d{3})+")  # 120.760 or 10,074, which have two readings
DECIMAL_COMMA = re.compile(r"[-+]?\d+,(\d{1,2}|\d{4,}) ?%?")
SAYS_TIME = re.compile(r"(\b|_)(date|time|month|year)|(date|time|month|year)(\b|_)|unix|_at\b")
CLOCK = re.compile(r"\d\d?:\d\d.*|\d{6}")
SURE = ("number", "ISO")  # forms of time that cannot be taken for another
DAYS = ["%Y-%m-%d", "%m-%d-%Y", "%d-%m-%Y", "%y-%m-%d", "%m-%d-%y", "%d-%m-%y", "%Y%m%d", "%Y-%m"]
DAYS += ["%d-%b-%Y", "%d-%b-%y", "%b-%d-%Y"]
CLOCKS = ["", " %H:%M", " %H:%M:%S", " %H:%M:%S.%f", " %I:%M %p", " %I:%M:%S %p", " %H%M%S"]
FORMS = [*SURE, *(day + clock for day in DAYS for clock in CLOCKS)]


def load_prices(path, column="open", order="time"):
    """The values in one column of a CSV file: (N,) float64, oldest first.

    A line on stderr tells where the order comes from: a column of times, or the file, which also
    order="file" takes. Rows without a value are skipped, and of rows with the same time the first
    is kept, which is told as well. Raises Mistake for a file without such a column, and for
    whatever could be misread: other characters than numbers have, dates that have two readings,
    several series in one file.
    """
    if order not in ("time", "file"):
        raise Mistake(f"order must be time or file, not {order}")
    values, lines, times = read_rows(path, column.strip(" <>").lower())
    times = {name: cells for name, cells in times.items() if len(set(cells)) > 1}
    if order == "file" or not times:
        print(f"{path}: no times used: in the order of the file", file=sys.stderr)
        return values
    name, seconds = read_times(path, times, lines)
    print(f"{path}: sorted by {name!r}", file=sys.stderr)
    _, first, place = np.unique(seconds, return_index=True, return_inverse=True)
    kept = values[first]  # of rows with the same time, the first
    other = abs(values - kept[place]) > 0.01 * abs(kept[place])
    again = np.delete(np.arange(len(values)), first)
    if other.sum() > len(values) / 100 or len(again) > len(values) / 2:
        at = again[0]
        raise Mistake(
            f"{path}: line {lines[at]} has the time of line {lines[first[place[at]]]}: several "
            f"series in one file, or dates without a time? --order file takes the rows as they are"
        )
    tell_rows(path, lines[again], "dropped, whose time is there already")
    return kept


def tell_rows(path, lines, what):
    """Say on stderr how many rows are left out, and where the first is."""
    if len(lines):
        print(f"{path}: rows {what}: {len(lines):,} from line {min(lines)} on", file=sys.stderr)


def read_rows(path, column):
    """The values of a column, the line of each, and the cells of the columns that hold times."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        try:
            head = list(islice(file, 50))
            names, at, above, delimiter = find_header(path, head, column)
            sample = [[], *csv.reader(head[above:], delimiter=delimiter)]
            columns = time_columns(names, at, sample[len(sample) // 2])
            rows = csv.reader(chain(head[above:], file), delimiter=delimiter, strict=True)
            return collect(path, names, at, columns, rows, above)
        except (UnicodeDecodeError, csv.Error) as error:
            raise Mistake(
                f"{path} is no CSV file in UTF-8 (an archive, or an Excel file?): {error}"
            ) from None


def find_header(path, head, column):
    """The column names, the place of the column, the lines down to them, and the delimiter."""
    for delimiter in ",;\t":
        rows = csv.reader(head, delimiter=delimiter)
        for row in rows:
            names = [name.strip(" <>").lower() for name in row]
            if names.count(column) > 1:
                raise Mistake(f"{path} names {column!r} twice: see line {rows.line_num}")
            if column in names:
                return names, names.index(column), rows.line_num, delimiter
    first = next(csv.reader(head), [])
    if len(first) == len(KLINE) and column in KLINE and None not in map(to_number, first):
        return KLINE, KLINE.index(column), 0, ","  # Binance, without a header
    raise Mistake(
        f"{path} has no column {column!r}: name one with --column. One of the first lines must "
        f"name them, divided by commas, semicolons or tabs; the first is {''.join(head[:1])!r:.80}"
    )


def time_columns(names, at, row):
    """The places of the times in a row, by their names: a column, or a date and a time of day.

    They are the columns whose name says so, and those that hold a date in this row.
    """
    dates = {}
    for ix, (name, cell) in enumerate(zip(names, map(str.strip, row + [""] * len(names)))):
        named = SAYS_TIME.search(name)
        if ix == at or not (named or to_number(cell) is None):
            continue
        if dates and CLOCK.fullmatch(cell):
            places = next(iter(dates.values()))
            places[1:] = places[1:] or [ix]  # the first time of day belongs to the first date
        elif named or any(len(read_column([cell], form)) for form in FORMS):
            dates[name] = [ix]
    return dates


def collect(path, names, at, columns, rows, above):
    """The values below the header, the line of each, and its cells in the columns of times."""
    values = array("d")  # a list would take four times the memory
    lines = array("q")
    missing = array("q")
    times = {name: [] for name in columns}
    for row in filter(None, rows):
        line = above + rows.line_num
        row += [""] * (len(names) - len(row))
        cell = row[at].strip()
        value = to_number(cell)
        if rows.dialect.delimiter != "," and "," in cell and "." not in cell:
            value = None  # 1,403 may be 1.403 or 1403
        if not values and (row[0] == "Ticker" or not re.search(r"\d", "".join(row))):
            continue  # a further header row: yfinance has two
        if value is None or math.isinf(value):
            raise Mistake(f"{path}, line {line}: {cell!r:.40} is no number like 1403.13")
        if len([*filter(None, row)]) > len(names):
            raise Mistake(f"{path}, line {line} has more cells than the header has names")
        if math.isnan(value):
            missing.append(line)
            continue
        if GROUPED.fullmatch(cell) and any(map(DECIMAL_COMMA.fullmatch, row)):
            raise Mistake(f"{path}, line {line}: {cell} is unclear beside decimal commas")
        values.append(value)
        lines.append(line)
        for name, places in columns.items():
            times[name].append(" ".join([row[ix].strip() for ix in places]))
    if not values:
        raise Mistake(f"{path} has no number in column {names[at]!r}")
    tell_rows(path, missing, "skipped, without a value")
    return np.array(values), np.array(lines), times


def to_number(cell):
    """A cell as a number, with or without a currency; nan where it is missing, None for others."""
    try:
        return float(cell)
    except ValueError:
        pass
    if cell.strip().lower() in MISSING:
        return math.nan
    return float(re.sub("[^-0-9.]", "", cell)) if NUMBER.fullmatch(cell) else None


def read_times(path, times, lines):
    """The name of a column of times, and its seconds since 1970, (N,).

    Columns with more different cells come first. A form of date is right if it puts the rows in
    order, up or down, or if no other form reads the whole column and its year has four digits.
    """
    for name, cells in sorted(times.items(), key=lambda item: -len(set(item[1]))):
        in_order = {}
        others = []
        longest = 0
        for form in FORMS:
            seconds = read_column(cells, form)
            longest = max(longest, len(seconds))
            if len(seconds) < len(cells):
                continue
            steps = np.diff(seconds)
            if (steps >= 0).all() or (steps <= 0).all():
                in_order[np.argsort(seconds, kind="stable").tobytes()] = seconds
            elif "%y" not in form and (form != "number" or min(seconds) > 1e8):
                others.append(seconds)
            if form in SURE and (in_order or others):
                break
        readings = [*in_order.values()] or others
        if len(readings) == 1:
            return name, readings[0]
        at = min(longest, len(cells) - 1)
        unclear = f"line {lines[at]}: {cells[at]!r:.40} in column {name!r}"
    raise Mistake(
        f"{path}, {unclear} can be read as a time in no way, or in two: "
        f"write times like 2017-10-01 20:00, or take --order file"
    )


def read_column(cells, form):
    """Seconds since 1970 of each cell, up to the first that has another form."""
    seconds = array("d")
    try:
        for cell in cells:
            seconds.append(read_time(cell, form))
    except ValueError:
        pass
    return np.array(seconds)


def read_time(cell, form):
    """Seconds since 1970 of a cell, in UTC unless it names a zone, or ValueError."""
    if form == "number":
        number = float(cell)
        while 1e11 < abs(number) < math.inf:  # in milliseconds, or smaller still
            number /= 1000
        if not abs(number) < 4e9:  # neither seconds nor milliseconds of this century or the last
            raise ValueError
        return number
    if form == "ISO":
        moment = datetime.fromisoformat(cell.removesuffix("Z").removesuffix(" UTC"))
    else:
        date, clock = re.fullmatch(r"(?s)(.*?)( \d\d?:\d\d.*| \d{6}|)", cell).groups()
        day = "-".join(re.findall(r"\d+|[A-Za-z]+", date))  # 31/01/2020 and Jan 31, 2020
        moment = datetime.strptime(day + clock, form)
    return moment.replace(tzinfo=moment.tzinfo or timezone.utc).timestamp()


# --------------------------------------------------------------------------------------------------
# Checkpoint: the settings, the values and the state of a run, in one file


def whole(text):
    """A whole number, from 1 to a billion."""
    number = int(text) if text.isdecimal() else 0
    if not 1 <= number <= 10**9:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on, not {text:.40}")
    return number


def number(text):
    """A number from 0 to a million."""
    value = float(text)
    if not 0 <= value <= 1e6:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to a million, not {text}")
    return value


SETTINGS = {  # kind, default, meaning
    "column": (str, "open", "column of the values in the file"),
    "order": (str, "time", "of the rows: by a column of times, or file: as they stand"),
    "normalise": (str, None, "relative, difference or range, see StockDataset; None: by the sign"),
    "cell": (str, "rnn", "kind of hidden layer: rnn, gru, lstm"),
    "hidden_size": (whole, 32, "hidden units"),
    "seq_length": (whole, 20, "values in a window"),
    "batch_size": (whole, 32, "windows in a batch"),
    "learning_rate": (number, 3e-3, "first learning rate of AdamW, which falls to 0"),
    "val_fraction": (number, 0.15, "share of the values to validate"),
    "test_fraction": (number, 0.15, "share of the values to test"),
    "epochs": (whole, 100, "passes over the training part"),
    "seed": (int, 0, "seed of the random numbers"),
    "device": (str, "cpu", "where torch computes: cpu, cuda, mps"),
}


def save_checkpoint(path, settings, values, state, over=None):
    """Save a run: its settings, its values and its state; returns the name of the file.

    It is the first free one of path, path-2, path-3, ..., and path itself only where the file that
    stands there is the one that over marks.
    """
    kept = {name: getattr(settings, name) for name in ("prices", *SETTINGS)}
    file = io.BytesIO()
    torch.save({"settings": kept, "values": torch.tensor(values), "state": state}, file)
    return write_whole(path, file.getvalue(), over)


def load_checkpoint(path):
    """A model with the best weights, and the settings, the values and the state of its run.

    Before the first epoch the state is None, and the model untrained. Nothing in the file is
    executed. Raises Mistake for a file that is damaged, of another kind, or with other weights than
    such a model has.
    """
    settings, values, state = read_checkpoint(path)
    model = RNN(settings.hidden_size, settings.cell)
    try:
        for name in ("model", "best") if state else ():
            model.load_state_dict(state[name])
    except RuntimeError as error:
        raise Mistake(f"{path} is not of this model: {' '.join(str(error).split())}") from None
    return model, settings, values, state


def read_checkpoint(path):
    """The settings, the values and the state in a file; Mistake for what can be no checkpoint."""
    data = Path(path).read_bytes()
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
        if archive.testzip() or any(entry.external_attr for entry in archive.infolist()):
            raise ValueError("a checksum is wrong")  # which torch.load does not look at
        saved = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        settings = argparse.Namespace(**saved["settings"])
        if hasattr(settings, "order"):  # else it is of an earlier version
            for name, (kind, default, _) in SETTINGS.items():
                value = saved["settings"][name]
                if value != default and kind(str(value)) != value:
                    raise ValueError(f"{name} cannot be {value}")
            if settings.hidden_size**2 > len(data):
                raise ValueError("its sizes do not fit")
            return settings, saved["values"].numpy(), saved["state"]
    except Exception as error:  # damaged bytes can make torch raise almost anything
        raise Mistake(f"{path} is damaged, or no checkpoint of stock_rnn.py: {error!r}") from error
    raise Mistake(f"{path} is of an earlier version of stock_rnn.py: train again")


def write_whole(path, data, over=None):
    """Write bytes to a file whole or not at all, and return its name.

    They go to a temporary file beside it, which is then renamed. A link stays a link. The file that
    stands at path is replaced only if it is the one that over marks; else the first free name of
    path, path-2, path-3, ... is taken.
    """
    real = os.path.realpath(path)
    temporary = f"{real}.{secrets.token_hex(4)}.tmp"
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if over is None or mark_of(path) != over:
            real = path = free_name(path)
        os.replace(temporary, real)
        return path
    except OSError as error:
        error.filename = path  # and not the temporary one
        raise
    finally:
        Path(temporary).unlink(missing_ok=True)


def free_name(path):
    """Create the first of path, path-2, path-3, ... that is free, and return its name."""
    stem, ending = os.path.splitext(path)
    name = path
    number = 1
    while True:
        try:
            open(name, "xb").close()
            return name
        except FileExistsError:
            number += 1
            name = f"{stem}-{number}{ending}"


def mark_of(path):
    """What tells a file from one that takes its place; None where there is none."""
    try:
        status = os.stat(path)
        return status.st_ino, status.st_mtime_ns
    except FileNotFoundError:
        return None


# --------------------------------------------------------------------------------------------------
# Command line

DATA = Path(__file__).resolve().parent / "data" / "btcusd_20h.csv"


@dataclass
class Session:
    """A run on the command line: its settings, its values, and the file that it saves in."""

    settings: argparse.Namespace
    values: np.ndarray
    path: str
    plot: str
    mark: tuple = None  # of the file at path, once that is of this run

    def learn(self, state=None):
        """Train, saving after every epoch, and test; returns the exit status."""
        settings = self.settings
        train_set, val_set, test_set = parts_of(settings, self.values)
        check_device(settings.device)
        torch.manual_seed(settings.seed)
        model = RNN(settings.hidden_size, settings.cell).to(settings.device)
        optimizer, scheduler = adamw(model, settings.epochs, settings.learning_rate)
        loaders = (batches(train_set, settings.batch_size, shuffle=True), batches(val_set, 1024))
        errors = errors_of(model, test_set, train_set)
        if self.plot:
            self.draw(test_set, errors)  # what cannot be tested or written shows before training
        self.save(state)
        x, target = val_set[:]
        self.naive_loss = nn.functional.mse_loss(x[:, -1], target).item()
        print(
            f"{Path(settings.prices).name}, {len(self.values):,} values of {settings.column}, "
            f"{train_set.normalise}, saved in {self.path}\n"
            f"{len(train_set):,} to train on, {len(val_set):,} to validate, "
            f"{len(test_set):,} to test\n\n"
            f"{'epoch':>8}{'training loss':>16}{'validation loss':>18}{'of the naive':>15}"
        )
        try:
            train(model, *loaders, None, optimizer, scheduler, settings.epochs, self.report, state)
        except KeyboardInterrupt:
            print(f"\nstopped; to go on:  {command_line('resume', self.path)}")
            return 130
        errors = errors_of(model, test_set, train_set)
        if self.plot:
            self.draw(test_set, errors)
        epoch = self.state["best_epoch"]
        why = " (untrained: no epoch was better on the validation part)" * (epoch == 0)
        print_errors(errors, f"values never seen, by the weights of epoch {epoch}{why}")
        if os.path.isfile(settings.prices):  # a pipe cannot be read again
            print(f"\nfor the next value:\n{command_line('predict', self.path, settings.prices)}")
        return 0

    def save(self, state):
        """Write the checkpoint, in a free name if another program has written there."""
        path = save_checkpoint(self.path, self.settings, self.values, state, self.mark)
        if self.mark and path != self.path:
            print(f"{self.path} was changed by another program: going on in {path}")
        self.path = path
        self.mark = mark_of(path) or "taken away at once"
        self.state = state

    def report(self, state):
        """Save after every epoch, and print about a dozen rows in all."""
        self.save(state)
        train_loss, val_loss = (losses[-1] for losses in state["history"].values())
        epoch = len(state["history"]["val_loss"])
        epochs = self.settings.epochs
        if epoch == epochs or epoch % math.ceil(epochs / 12) == 0:
            share = val_loss / (self.naive_loss or math.nan)
            print(f"{epoch:>8}{train_loss:>16.6f}{val_loss:>18.6f}{share:>15.4f}", flush=True)

    def draw(self, test_set, errors):
        """Write the picture of the test."""
        if os.path.realpath(self.plot) in map(os.path.realpath, (self.settings.prices, self.path)):
            raise Mistake(f"--plot {self.plot} is a file of this run: name another")
        if not self.plot.endswith((".png", ".svg", ".pdf")):
            raise Mistake(f"--plot must end in .png, .svg or .pdf, not {self.plot}")
        try:
            picture = picture_of(test_set, errors, self.settings.column, self.plot[-3:])
        except ImportError as error:
            raise Mistake(f"--plot needs matplotlib: pip install matplotlib ({error})") from None
        write_whole(self.plot, picture, over=mark_of(self.plot))


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
    """Mistake for a device that torch does not have here."""
    try:
        torch.ones(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        raise Mistake(f"--device {device}: {str(error).splitlines()[0]}") from None


def train_command(args):
    """Start a new run on a file of values, in a checkpoint of its own."""
    if args.prices == str(DATA) and not DATA.exists():
        raise Mistake("give a CSV file: python stock_rnn.py train my.csv")
    return Session(
        args, load_prices(args.prices, args.column, args.order), args.checkpoint, args.plot
    ).learn()


def resume_command(args):
    """Go on with the run of a checkpoint, exactly as if it had not been stopped."""
    path = args.checkpoint
    mark = mark_of(path)
    _, settings, values, state = load_checkpoint(path)
    settings.device = args.device or settings.device
    settings.epochs = args.epochs or settings.epochs
    done = len(state["history"]["val_loss"]) if state else 0
    if settings.epochs < done:
        raise Mistake(f"the run is at epoch {done}: {args.epochs} is too few")
    return Session(settings, values, path, args.plot, mark).learn(state)


def command_line(command, *paths):
    """A command as one types it."""
    paths = [f"./{path}" if path.startswith("-") else path for path in paths]  # no flags
    return f"python {shlex.join([sys.argv[0], command, *paths])}"


def loaded(args):
    """A model, its training set, all values that it has seen, and the values of a file."""
    model, settings, values, _ = load_checkpoint(args.checkpoint)
    train_set, _, test_set = parts_of(settings, values)
    found = load_prices(args.prices, args.column or settings.column, args.order or settings.order)
    return model, train_set, values[: len(values) - len(test_set)], found


def test_command(args):
    """Test a model on all values of a file that it was not trained on."""
    model, train_set, seen, found = loaded(args)
    if found.tobytes() in seen.tobytes():
        raise Mistake("the model was trained on all of these values")
    # 10 values, as fewer could be alike by chance; where values repeat, as in the file trained on.
    for end in sorted(range(10, len(found)), key=lambda end: abs(end - len(seen))):
        if found[end - 1] == seen[-1] and np.array_equal(found[:end][-len(seen) :], seen[-end:]):
            print(f"the model has seen the first {end:,} values: the rest is the test")
            found = found[max(0, end - train_set.seq_length) :]
            break
    print_errors(errors_of(model, train_set.like(found), train_set), "values")


def predict_command(args):
    """Print the values that a model expects after the last row of a file, one a line."""
    model, train_set, _, values = loaded(args)
    window = train_set.like(values[-train_set.seq_length :])
    for value in forecast(model, window, args.steps)[-1]:
        print(np.format_float_positional(value, precision=10, fractional=False, trim="-"))


def add_arguments(train, resume, test, predict):
    """The arguments of the commands."""
    train.set_defaults(run=train_command)
    train.add_argument("prices", nargs="?", default=str(DATA), help="CSV file")
    for name, (kind, default, meaning) in SETTINGS.items():
        flag = f"--{name.replace('_', '-')}"
        train.add_argument(flag, type=kind, default=default, help=f"{meaning} ({default})")
    train.add_argument("--checkpoint", default="stock_rnn.pt", help="or NAME-2.pt, and so on")
    resume.set_defaults(run=resume_command)
    resume.add_argument("--epochs", type=whole, help="epochs in all")
    resume.add_argument("--device", help="where torch computes (as before)")
    for command in (train, resume):
        command.add_argument("--plot", help="file for a picture of the test; needs matplotlib")
    test.set_defaults(run=test_command)
    predict.set_defaults(run=predict_command)
    predict.add_argument("--steps", type=whole, default=1, help="values ahead (1)")
    for command in (resume, test, predict):
        command.add_argument("checkpoint", help="file that train has saved")
    for command in (test, predict):
        command.add_argument("prices", help="CSV file")
        command.add_argument("--column", help="column of the values (as in training)")
        command.add_argument("--order", help="of the rows: time or file (as in training)")


def parse(argv):
    """The arguments of the command line; a command that is left out is train."""
    meaning = "Next-value prediction with a recurrent network in torch."
    parser = argparse.ArgumentParser(prog="stock_rnn.py", description=meaning)
    commands = parser.add_subparsers(title="commands")
    add_arguments(
        commands.add_parser("train", help="learn from values (also without a command)"),
        commands.add_parser("resume", help="go on with a run that was stopped, in its own file"),
        commands.add_parser("test", help="measure how well a model predicts other values"),
        commands.add_parser("predict", help="print the values after the last row"),
    )
    if not argv or argv[0] not in (*commands.choices, "-h", "--help"):
        argv = ["train", *argv]
    return parser.parse_args(argv)


def main(argv):
    """Run the command line; the exit status is 2 after a mistake, told in one line."""
    try:
        args = parse(argv)
        return args.run(args)
    except KeyboardInterrupt:
        return 130
    except RuntimeError as error:
        if "llocate" not in str(error):  # torch has no class of its own for a full memory
            raise
        message = "out of memory"
    except (Mistake, OSError, MemoryError) as error:
        message = str(error) or "out of memory"
    print(f"stock_rnn.py: error: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # exit silently when "| head" is done
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding=None if stream.isatty() else "utf-8", errors="replace")
    sys.exit(main(sys.argv[1:]))
