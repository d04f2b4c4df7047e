# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy>=1.26", "torch>=2.6"]
# ///
# SPDX-License-Identifier: MIT-0
"""Next-value prediction with a recurrent network in torch, from a CSV file to an honest score.

    python stock_rnn.py                                learn from two years of Bitcoin prices
    python stock_rnn.py train my.csv --column Close    learn from your own values
    python stock_rnn.py resume                         go on with a run that was stopped
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
import importlib.util
import io
import itertools
import math
import os
import re
import secrets
import shlex
import signal
import sys
import zipfile
import zlib
from array import array
from datetime import datetime
from functools import partial
from pathlib import Path
from types import SimpleNamespace

# One thread: on a busy machine, threads that wait for each other are 10 to 50 times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, SequentialSampler


class Mistake(ValueError):
    """What a user can mend: the command line tells it in one line. All else is a bug."""


# --------------------------------------------------------------------------------------------------
# Files: from a CSV file to an array of values, the oldest first

NOT_TEXT = {
    b"\x1f\x8b": "compressed with gzip: unpack it first",
    b"PK": "a zip or Excel file: save it as CSV",
    b"\xff\xfe": "UTF-16: save it as UTF-8",
}
KLINE = ["open_time", "open", "high", "low", "close", "volume", *[""] * 6]  # as Binance has them
MISSING = {"", "null", "none", "nan", "na", "n/a", "#n/a", "#n/a n/a", "-", ".", "?"}
NUMBER = re.compile(r"[-+]?[$€£¥]? ?([0-9]+|[1-9][0-9]{0,2}(,[0-9]{3})+)(\.[0-9]*)? ?[$€£¥]?")
GROUPED = re.compile(r"[-+]?\d{1,3}([.,]\d{3})*")  # 120.760 or 10,074, which have two readings
DECIMAL_COMMA = re.compile(r"[-+]?\d+,(\d{1,2}|\d{4,}) ?%?")
CLOCK = re.compile(r"\d\d?:\d\d.*|\d{6}")
SURE = ("number", "ISO")  # forms of time that cannot be taken for another
DAYS = ["%Y-%m-%d", "%m-%d-%Y", "%d-%m-%Y", "%y-%m-%d", "%m-%d-%y", "%d-%m-%y", "%Y%m%d", "%Y-%m"]
DAYS += ["%d-%b-%Y", "%d-%b-%y", "%b-%d-%Y"]
CLOCKS = ["", " %H:%M", " %H:%M:%S", " %H:%M:%S.%f", " %I:%M %p", " %I:%M:%S %p", " %H%M%S"]
EPOCH = datetime(1970, 1, 1)
FORMS = [*SURE, *(day + clock for day in DAYS for clock in CLOCKS)]


def load_prices(path, column="open"):
    """The values in one column of a CSV file: (N,) float64, oldest first.

    A line on stderr tells where the order comes from: a column of times, or the file. Rows without
    a value are skipped, and of rows with the same time the first is kept, which is told as well.
    Raises Mistake for a file without such a column, and for whatever could be misread: other
    characters than numbers have, dates that have two readings, several series in one file.
    """
    values, lines, times = read_rows(path, column.strip(" <>").lower())
    name, seconds = read_times(path, times, lines)
    if name is None:
        print(f"{path}: no times found: in the order of the file", file=sys.stderr)
        return values
    print(f"{path}: sorted by {name!r}", file=sys.stderr)
    _, first, place = np.unique(seconds, return_index=True, return_inverse=True)
    kept = values[first]  # of rows with the same time, the first
    other = abs(values - kept[place]) > 0.01 * abs(kept[place])
    if other.sum() > len(values) / 100:
        at = other.argmax()
        raise Mistake(
            f"{path}: line {lines[at]} has the time of line {lines[first[place[at]]]} "
            f"and another value: several series in one file?"
        )
    tell_rows(path, np.delete(lines, first), "dropped, whose time is there already")
    return kept


def tell_rows(path, lines, what):
    """Say on stderr how many rows are left out, and where the first is."""
    if len(lines):
        print(f"{path}: rows {what}: {len(lines):,} from line {min(lines)} on", file=sys.stderr)


def read_rows(path, column):
    """The values of a column, the line of each, and the cells of the columns that hold times."""
    with open(path, "rb") as file:
        start = file.peek(2)[:2]  # not read, because a pipe can be read but once
        if start in NOT_TEXT:
            raise Mistake(f"{path} is {NOT_TEXT[start]}")
        try:
            text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
            return collect(path, *find_header(path, text, column))
        except (UnicodeDecodeError, csv.Error) as error:
            raise Mistake(f"{path} is no CSV file in UTF-8: {error}") from None


def find_header(path, file, column):
    """The column names, the place of the column, and the rows below the header."""
    head = list(itertools.islice(file, 50))
    for delimiter in ",;\t":
        rows = csv.reader(itertools.chain(head, file), delimiter=delimiter)
        for row in itertools.islice(rows, len(head)):
            names = [name.strip(" <>").lower() for name in row]
            if names.count(column) > 1:
                raise Mistake(f"{path} names {column!r} twice: see line {rows.line_num}")
            if column in names:
                return names, names.index(column), rows
    first = next(csv.reader(head), [])
    if len(first) == len(KLINE) and column in KLINE and None not in map(to_number, first):
        return KLINE, KLINE.index(column), csv.reader(itertools.chain(head, file))  # Binance
    raise Mistake(
        f"{path} has no column {column!r}: name one with --column. One of the first lines must "
        f"name them, divided by commas, semicolons or tabs; the first is {''.join(head[:1])!r:.80}"
    )


def collect(path, names, at, rows):
    """What read_rows returns, from the rows below the header."""
    values = array("d")  # a list would take four times the memory
    lines = array("q")
    missing = array("q")
    times = {}
    grouped = True
    commas = False
    for line, row in numbered(path, rows):
        row += [""] * (len(names) - len(row))
        cell = row[at].strip()
        value = to_number(cell)
        if rows.dialect.delimiter != "," and "," in cell and "." not in cell:
            value = None  # 1,403 may be 1.403 or 1403
        if not values and (row[0] == "Ticker" or not re.search(r"\d", "".join(row))):
            continue  # a further header row: yfinance has two
        if value is None or abs(value) > 1e100:
            raise Mistake(f"{path}, line {line}: {cell!r:.40} is no number like 1403.13")
        if len(row) > len(names) and len(list(filter(None, row))) > len(names):
            raise Mistake(f"{path}, line {line} has more cells than the header has names")
        if math.isnan(value):
            missing.append(line)
            continue
        if not values:
            columns = time_columns(names, row, at)
            times = {name: [] for name in columns}
        grouped = grouped and GROUPED.fullmatch(cell)
        commas = commas or grouped and any(map(DECIMAL_COMMA.fullmatch, row))
        values.append(value)
        lines.append(line)
        for name, places in columns.items():
            times[name].append(" ".join([row[ix].strip() for ix in places]))
    if not values:
        raise Mistake(f"{path} has no number in column {names[at]!r}")
    if grouped and commas:
        raise Mistake(f"{path} has decimal commas, so that {cell} is unclear: use decimal points")
    tell_rows(path, missing, "skipped, without a value")
    return np.array(values), np.array(lines), times


def numbered(path, rows):
    """The rows that are not empty, each with its line."""
    line = rows.line_num
    for row in rows:
        line += 1
        if rows.line_num > line:
            raise Mistake(f"{path}: a quote in line {line} is not closed")
        if row:
            yield line, row


def to_number(cell):
    """A cell as a number, with or without a currency; nan where it is missing, None for others."""
    try:
        return float(cell)
    except ValueError:
        pass
    if cell.strip().lower() in MISSING:
        return math.nan
    return float(re.sub("[^-0-9.]", "", cell)) if NUMBER.fullmatch(cell) else None


def time_columns(names, row, at):
    """The places of the times in a row, by their names: a column, or a date and a time of day.

    A number is a time only where the name of its column says so.
    """
    dates = {}
    clocks = []
    for ix, (name, cell) in enumerate(zip(names, row)):
        named = re.search(r"\btime|time\b|date|unix|_at\b", name)
        if ix == at or not (named or to_number(cell) is None):
            continue
        if CLOCK.fullmatch(cell.strip()):
            clocks.append(ix)
        elif any(len(read_column([cell.strip()], form)) for form in FORMS):
            dates[name] = [ix]
    if dates and clocks:
        name, places = next(iter(dates.items()))
        return {name: [*places, clocks[0]]}
    return dates


def read_times(path, times, lines):
    """The name of a column of times, and its seconds since 1970, (N,); or None and None.

    A form of date is right if it puts the rows in order, up or down, or if no other form reads the
    whole column and its year has four digits.
    """
    unclear = ""
    for name, cells in times.items():
        in_order = {}
        others = []
        longest = 0
        for form in FORMS:
            seconds = read_column(cells, form)
            longest = max(longest, len(seconds))
            if len(seconds) < len(cells) or not np.isfinite(seconds).all():
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
        unclear = f"line {lines[at]}: the time {cells[at]!r:.40} can be read in no way, or in two"
    if unclear:
        raise Mistake(f"{path}, {unclear}: write times like 2017-10-01 20:00")
    return None, None


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
        if abs(number) > 4e9:  # neither seconds nor milliseconds of this century or the last
            raise ValueError
        return number
    if form == "ISO":
        moment = datetime.fromisoformat(cell.removesuffix("Z").removesuffix(" UTC"))
    else:
        date, clock = re.fullmatch(r"(?s)(.*?)( \d\d?:\d\d.*| \d{6})?", cell).groups()
        day = "-".join(re.findall(r"\d+|[A-Za-z]+", date))  # 31/01/2020 and Jan 31, 2020
        moment = datetime.strptime(day + (clock or ""), form)
    return moment.timestamp() if moment.tzinfo else (moment - EPOCH).total_seconds()


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
    Raises Mistake for values that are too few, not finite, all alike, or not above zero (relative).
    """

    def __init__(self, values, seq_length, normalise="relative", scale=None, middle=0.0):
        self.values = np.array(values, np.float64)
        self.seq_length = seq_length
        self.normalise = normalise
        self.scale = scale
        self.middle = middle
        if normalise not in NORMALISE:
            raise Mistake(f"normalise must be one of {', '.join(NORMALISE)}, not {normalise}")
        if self.values.ndim != 1 or len(self.values) < seq_length + (scale is None):
            raise Mistake(f"{len(self.values)} values are too few for a window of {seq_length}")
        low = float(self.values.min())
        high = float(self.values.max())
        if not math.isfinite(high - low):
            raise Mistake(f"values must be finite, not from {low} to {high}")
        if normalise == "relative" and low <= 0:
            raise Mistake(f"{low:g} is not above zero: train with --normalise difference")
        if scale is None:
            self.fit(low, high)

    def fit(self, low, high):
        """Set scale and middle for these values."""
        changes = np.diff(self.values)
        smallest = 1e-12 * max(abs(low), abs(high))
        if self.normalise == "relative":
            changes = changes / self.values[:-1]
            smallest = 1e-12
        self.scale = float(np.std(changes))
        if self.normalise == "range":
            self.scale = (high - low) / 2
            self.middle = (high + low) / 2
        if self.scale <= smallest:
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
    test_start = len(values) - int(len(values) * min(test_fraction, 1))
    val_start = test_start - int(len(values) * min(val_fraction, 1))
    if not seq_length < val_start < test_start < len(values):
        raise Mistake(
            f"{len(values)} values in windows of --seq-length {seq_length}, and fractions "
            f"of {val_fraction} and {test_fraction}, leave a part without target: take smaller ones"
        )
    if normalise is None:
        normalise = "relative" if min(values[:val_start]) > 0 else "difference"
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
    sampler = BatchSampler(order, batch_size, drop_last=False)
    return DataLoader(dataset, batch_size=None, sampler=sampler, generator=torch.Generator())


# --------------------------------------------------------------------------------------------------
# Models: the network, and the simple forecasts that it should beat

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


class Naive(nn.Module):
    """The naive forecast as a model: the next value is the last one, y = x_T."""

    def forward(self, x):
        return x[:, -1]


class WeightedSum(nn.Module):
    """A weighted sum of the window and of 1, by T + 1 weights: (B, T, 1) to (B, 1)."""

    def __init__(self, weights):
        super().__init__()
        self.register_buffer("weights", weights)

    def forward(self, x):
        return with_one(x) @ self.weights


def with_one(x):
    """The values of each window and a 1: (B, T, 1) to (B, T + 1)."""
    return nn.functional.pad(x[..., 0].double(), (0, 1), value=1.0)


def simple_forecasts(train_set):
    """The weights of two simple forecasts beside Naive(), each (T + 1, 1), by their names.

    drift adds the mean change of the training set to the last value, and linear has the least
    squared error on that set.
    """
    x, target = train_set[:]
    drift = torch.zeros(train_set.seq_length + 1, 1, dtype=torch.float64)
    drift[-2] = 1
    drift[-1] = (target - x[:, -1]).mean()
    linear, *_ = np.linalg.lstsq(with_one(x).numpy(), target.double().numpy(), rcond=None)
    return {"drift": drift, "linear": torch.from_numpy(linear)}


# --------------------------------------------------------------------------------------------------
# Training


def train(
    model,
    train_loader,
    val_loader,
    criterion=None,
    optimizer=None,
    epochs=100,
    report=None,
    state=None,
):
    """Minimise a loss; returns {"train_loss": [...], "val_loss": [...]}, a number for each epoch.

    The loaders give batches (x, target). The loss is the mean squared error and the optimiser AdamW
    unless they are given; the learning rate falls by a half cosine to zero. The model ends with the
    weights whose validation loss was lowest, which may be those that it came with. report(state) is
    called after every epoch; such a state, passed back, goes on exactly from there. A seed set
    before the model is made repeats everything on the same machine. Raises Mistake for a loss that
    is not finite.
    """
    criterion = criterion or nn.functional.mse_loss
    optimizer = optimizer or torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=0.1)
    state = copy.deepcopy(state) or new_state(model, val_loader, optimizer, criterion)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["random"])
    history = state["history"]
    for epoch in range(len(history["val_loss"]), epochs):
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * (1 + math.cos(math.pi * epoch / epochs)) / 2
        train_loss = train_epoch(model, train_loader, criterion, optimizer)
        val_loss, _ = evaluate(model, val_loader, criterion)
        if not math.isfinite(train_loss + val_loss):
            raise Mistake(f"no finite loss in epoch {epoch + 1}: try a lower learning rate")
        history["train_loss"].append(train_loss)
        history["val_loss"].append(val_loss)
        state |= {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        state["random"] = torch.get_rng_state()
        if val_loss < state["best_loss"]:
            state["best"] = copy.deepcopy(model.state_dict())
            state["best_loss"] = val_loss
        if report:
            report(copy.deepcopy(state))
            torch.set_rng_state(state["random"])  # whatever report draws, training goes on alike
    model.load_state_dict(state["best"])
    return history


def new_state(model, val_loader, optimizer, criterion=nn.functional.mse_loss):
    """Where a training starts: the untrained model is the first that may turn out the best."""
    random = torch.get_rng_state()
    val_loss, _ = evaluate(model, val_loader, criterion)
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])  # as the schedulers of torch call it
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "random": random,
        "history": {"train_loss": [], "val_loss": []},
        "best": model.state_dict(),
        "best_loss": val_loss,
    }
    return copy.deepcopy(state)


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
    device = next(model.parameters(), torch.empty(0)).device
    x, target = (part.to(device) for part in batch)
    output = model(x)
    shape = getattr(output, "shape", type(output).__name__)
    if shape != target.shape:  # torch would broadcast them, and learn something else
        raise Mistake(f"the model answers {shape}, and must answer a tensor of {target.shape}")
    return criterion(output, target), output


@torch.inference_mode()
def evaluate(model, loader, criterion=nn.functional.mse_loss):
    """The mean loss over the batches of a loader, in eval mode, and the outputs in its order."""
    model.eval()
    losses, outputs = zip(*(loss_and_output(model, batch, criterion) for batch in loader))
    loss = np.average([loss.item() for loss in losses], weights=[len(part) for part in outputs])
    return float(loss), torch.cat(outputs)


# --------------------------------------------------------------------------------------------------
# What a trained model is asked for


@torch.inference_mode()
def forecast(model, dataset, steps=1):
    """The values after every window, (N - T + 1, steps); each is fed back for the next.

    The last row is what comes after the last value.
    """
    model.eval()
    device = next(model.parameters(), torch.empty(0)).device
    windows = torch.from_numpy(dataset.values).unfold(0, dataset.seq_length, 1)
    found = []
    for _ in range(steps):
        centre, unit = dataset.centre_and_unit(windows[:, -1:])
        x = ((windows - centre) / unit).float()[..., None]
        output = torch.cat([model(part.to(device)).cpu() for part in x.split(1024)])
        found.append(centre + unit * output.double())
        windows = torch.cat([windows[:, 1:], found[-1]], dim=1)
    return torch.cat(found, dim=1).numpy()


def predict(model, dataset):
    """The predicted values for all windows that have a target, (N - T,) float64."""
    return forecast(model, dataset)[:-1, 0]


def test(model, test_set):
    """How good a model is on a StockDataset, beside the naive forecast: a dict of figures.

    rmse and mae are in the values' unit, loss is what training minimises, theil_u is rmse /
    naive_rmse, direction is the share of moves whose sign was predicted, and t is
    diebold_mariano(model, Naive(), test_set). Raises Mistake when the values never move.
    """
    last = test_set.values[test_set.seq_length - 1 : -1]
    true = test_set.values[test_set.seq_length :]
    moved = true != last
    if not moved.any():
        raise Mistake("no value to test on differs from the one before: nothing to predict")
    loss, _ = evaluate(model, batches(test_set, 1024))
    predicted = predict(model, test_set)
    error = predicted - true
    rmse = float(np.sqrt(np.mean(error**2)))
    naive_rmse = float(np.sqrt(np.mean((last - true) ** 2)))
    right = np.sign(predicted - last)[moved] == np.sign(true - last)[moved]
    return {
        "loss": loss,
        "rmse": rmse,
        "mae": float(np.mean(abs(error))),
        "naive_rmse": naive_rmse,
        "theil_u": rmse / naive_rmse,
        "direction": float(np.mean(right)),
        "t": diebold_mariano(model, Naive(), test_set),
    }


def diebold_mariano(model, other, test_set):
    """The statistic of Diebold and Mariano (1995), for one step ahead, over the N targets.

        d_i = (error_i of the other)^2 - (error_i of the model)^2
        t   = mean(d) / (std(d) / sqrt(N))

    It is 0 where the two never differ; above t_limit(N) the model is better, below -t_limit worse.
    """
    true = test_set.values[test_set.seq_length :]
    d = (predict(other, test_set) - true) ** 2 - (predict(model, test_set) - true) ** 2
    return float(d.mean() / (d.std(ddof=1) / math.sqrt(len(d)))) if d.std() else 0.0


def t_limit(count):
    """What t exceeds by chance in 1 of 20 tests of so many values: Student's, approximated."""
    return 1.96 + 2.4 / (count - 1) + 3 / (count - 1) ** 2


WORDS = {"naive": "the last value", "drift": "drift", "linear": "the straight line"}


def verdict(figures, t, count):
    """What a test of so many values comes to, in one sentence.

    figures has what `test` says of the model and of each simple forecast, and t the model's
    statistic against each, by name. A gain of less than 0.1 % is not called better.
    """
    if count < 10:
        return f"Too few values to tell: {count}, and 10 are needed."
    gains = {name: 1 - figures["model"]["rmse"] / figures[name]["rmse"] for name in t}
    beaten = [name for name in t if t[name] > t_limit(count) and gains[name] >= 0.001]
    worse = [name for name in t if t[name] < -t_limit(count) and gains[name] <= -0.001]
    if "naive" in worse:
        return f"Worse than the last value: its error is {-gains['naive']:.1%} larger."
    if len(beaten) == len(t):
        best = min(t, key=gains.get)
        return (
            f"Better than all three simple forecasts: "
            f"its error is {gains[best]:.1%} smaller than that of {WORDS[best]}."
        )
    if "naive" in beaten:
        hardest = min(t, key=t.get)
        but = "worse than" if hardest in worse else "not shown to be better than"
        gain = f"{gains['naive']:.1%} smaller"
        return f"Better than the last value ({gain}), but {but} {WORDS[hardest]}."
    return (
        "No evidence that it is better than the last value: chance often makes such a difference."
    )


# --------------------------------------------------------------------------------------------------
# Checkpoint: all that testing, predicting and an exact resume need, in one file


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


def newest():
    """The newest stock_rnn*.pt in this folder; its name is printed."""
    found = sorted(Path().glob("stock_rnn*.pt"), key=os.path.getmtime)
    if not found:
        raise Mistake("there is no stock_rnn*.pt here: train first, or name a checkpoint")
    print(f"from {found[-1]}", file=sys.stderr)
    return str(found[-1])


def write_whole(path, data, new=False):
    """Write bytes to a file whole or not at all, and return its name.

    They go to a temporary file beside it, which is then renamed. A new file takes the first free
    name of path, path-2, path-3, ..., and else a link stays a link.
    """
    real = os.path.realpath(path)
    temporary = f"{real}.{secrets.token_hex(4)}.tmp"
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if new:
            real = path = free_name(path)
        os.replace(temporary, real)
        return path
    except OSError as error:
        error.filename = path  # and not the temporary one
        raise
    finally:
        Path(temporary).unlink(missing_ok=True)


def checkpoint_of(state, about):
    """The bytes of a checkpoint: a state of training, and a dict of what else should be known."""
    file = io.BytesIO()
    torch.save({"state": state, **about}, file)
    return file.getvalue()


def load_checkpoint(path):
    """A model with the best weights, and all that was saved: about.state, about.settings, ...

    Nothing in the file is executed. Raises Mistake for a file that is damaged or of another kind.
    """
    data = Path(path).read_bytes()
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
        if archive.testzip() or any(entry.external_attr for entry in archive.infolist()):
            raise ValueError("a checksum is wrong")  # which torch.load does not look at
        saved = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        about = SimpleNamespace(**saved)
        if "cell" in about.settings:  # else it is of an earlier version
            return restore(about, len(data)), about
    except Exception as error:  # damaged bytes can make torch raise almost anything
        raise Mistake(f"{path} is damaged, or no checkpoint of stock_rnn.py: {error!r}") from error
    raise Mistake(f"{path} is of an earlier version of stock_rnn.py: train again")


def restore(about, size):
    """The model of a checkpoint of so many bytes; its names and shapes must be those of an RNN."""
    H = about.settings["hidden_size"]
    if size < H**2:  # before a network of that size is built
        raise ValueError("its sizes do not fit")
    model = RNN(H, about.settings["cell"])
    model.load_state_dict(about.state["model"])
    model.load_state_dict(about.state["best"])
    return model


# --------------------------------------------------------------------------------------------------
# Command line

DATA = str(Path(__file__).resolve().with_name("data") / "btcusd_20h.csv")


def train_command(args):
    """Start a new run on a file of values, in a checkpoint of its own."""
    return learn(None, args, *read_parts(args))


def resume_command(args):
    """Go on with the run of a checkpoint, exactly as if it had not been stopped."""
    path = args.checkpoint or newest()
    _, about = load_checkpoint(path)
    settings = argparse.Namespace(**about.settings | {"plot": args.plot})
    settings.prices = args.prices or settings.prices
    settings.epochs = args.epochs or settings.epochs
    seen, parts = read_parts(settings)
    if zlib.crc32(seen.tobytes()) != about.checksum:
        raise Mistake(f"{path} was trained on other values than those of {settings.prices}")
    return learn(path, settings, seen, parts, about.state)


def read_parts(args):
    """The values that training sees, and the training, validation and test set of a file."""
    values = load_prices(args.prices, args.column)
    fractions = (args.val_fraction, args.test_fraction)
    parts = split(values, args.seq_length, *fractions, args.normalise)
    return values[: len(values) - len(parts[2])], parts


def learn(path, args, seen, parts, state=None):
    """Train, saving after every epoch, and test; without a path, in a file of a new name."""
    train_set, val_set, test_set = parts
    try:
        torch.ones(1, device=args.device).item()
    except (RuntimeError, AssertionError) as error:
        raise Mistake(f"--device {args.device}: {str(error).splitlines()[0]}") from None
    torch.manual_seed(args.seed)
    model = RNN(args.hidden_size, args.cell).to(args.device)
    optimizer = torch.optim.AdamW(model.parameters(), args.learning_rate, weight_decay=0.1)
    train_loader = batches(train_set, args.batch_size, shuffle=True)
    val_loader = batches(val_set, 1024)
    state = state or new_state(model, val_loader, optimizer)
    settings = {"prices": args.prices, "normalise": train_set.normalise}
    about = {
        "settings": {name: getattr(args, name) for name in (*SETTINGS, "cell")} | settings,
        "scale": train_set.scale,
        "middle": train_set.middle,
        "simple": simple_forecasts(train_set),
        "tail": torch.tensor(seen[-args.seq_length :]),
        "checksum": zlib.crc32(seen.tobytes()),
    }
    # What cannot be written shows before training.
    path = write_whole(path or args.checkpoint, checkpoint_of(state, about), new=not path)
    print(
        f"{Path(args.prices).name}, {len(seen) + len(test_set):,} values of {args.column}, "
        f"{train_set.normalise}, saved in {path}"
    )
    print("{:,} to train on, {:,} to validate, {:,} to test\n".format(*map(len, parts)))
    print(f"{'epoch':>8}{'training loss':>16}{'validation loss':>18}{'of the naive':>15}")
    naive_loss, _ = evaluate(Naive(), val_loader)
    report = partial(report_and_save, path, about, naive_loss)
    try:
        train(model, train_loader, val_loader, None, optimizer, args.epochs, report, state)
    except KeyboardInterrupt:
        print(f"\nstopped; to go on:  {command_line('resume', path)}")
        return 130
    print_result(path, args, test_set)
    return 0


def report_and_save(path, about, naive_loss, state):
    """Save after every epoch, and print about a dozen rows in all."""
    write_whole(path, checkpoint_of(state, about))
    train_loss, val_loss = (losses[-1] for losses in state["history"].values())
    epoch = len(state["history"]["val_loss"])
    epochs = about["settings"]["epochs"]
    if epoch == epochs or epoch % math.ceil(epochs / 12) == 0:
        share = val_loss / (naive_loss or math.nan)
        print(f"{epoch:>8}{train_loss:>16.6f}{val_loss:>18.6f}{share:>15.4f}", flush=True)


def print_result(path, args, test_set):
    """Print the test of a trained model, and draw it if a picture is wanted."""
    model, about = load_checkpoint(path)
    print_test(model, test_set, about, "values never seen")
    losses = about.state["history"]["val_loss"]
    last = math.ceil(len(losses) / 10)
    if len(losses) > last and min(losses[-last:]) < 0.99 * min(losses[:-last]):
        print("The validation loss was still falling: more --epochs may help.")
    print(f"\nfor the next value:\n{command_line('predict', path, args.prices)}")
    if args.plot:
        write_whole(args.plot, picture_of(args.plot, model, test_set))


def print_test(model, test_set, about, title):
    """Print the figures of a test, those of the simple forecasts, and what they come to."""
    models = {"model": model, "naive": Naive()}
    for name, weights in about.simple.items():
        models[name] = WeightedSum(weights)
    figures = {name: test(one, test_set) for name, one in models.items()}
    t = {name: diebold_mariano(model, models[name], test_set) for name in WORDS}
    print(f"\ntest on {len(test_set):,} {title}\n")
    rows = {
        "": models,
        "root mean square error": [f"{f['rmse']:,.6g}" for f in figures.values()],
        "mean absolute error": [f"{f['mae']:,.6g}" for f in figures.values()],
        "Theil U, error / naive error": [f"{f['theil_u']:.4f}" for f in figures.values()],
        "moves with the right sign": [f"{f['direction']:.1%}" for f in figures.values()],
        "Diebold-Mariano t of model": ["-", *(f"{value:.2f}" for value in t.values())],
    }
    rows["moves with the right sign"][1] = "-"  # the naive forecast sees no move at all
    for label, cells in rows.items():
        print(f"{label:<30}" + "".join(f"{cell:>12}" for cell in cells))
    print(f"\n{verdict(figures, t, len(test_set))}")


def picture_of(plot, model, test_set):
    """The test part as the bytes of a picture with the ending of a file name."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5))
    axes = figure.subplots()
    axes.plot(test_set.values[test_set.seq_length :], label="true")
    axes.plot(predict(model, test_set), label="predicted")
    axes.plot(predict(Naive(), test_set), ":", label="naive: the last value")
    axes.set(xlabel="row of the test part", ylabel="value")
    axes.legend()
    picture = io.BytesIO()
    figure.savefig(picture, format=Path(plot).suffix[1:])
    return picture.getvalue()


def command_line(*words):
    """A command as one types it."""
    return f"python {shlex.join([sys.argv[0], *words])}"


def dataset_of(args):
    """A model, all that was saved with it, and the values of a file as windows for it."""
    model, about = load_checkpoint(args.checkpoint)
    values = load_prices(args.prices, args.column or about.settings["column"])
    options = (about.settings["normalise"], about.scale, about.middle)
    return model, about, StockDataset(values, about.settings["seq_length"], *options)


def test_command(args):
    """Test a model on all values of a file that it was not trained on."""
    model, about, dataset = dataset_of(args)
    T = dataset.seq_length
    windows = np.lib.stride_tricks.sliding_window_view(dataset.values, T)
    ends = np.flatnonzero((windows == about.tail.numpy()).all(axis=1)) + T
    title = "values"
    if len(ends):
        print(f"the model has seen the first {ends[-1]:,} values: the rest is the test")
        dataset = dataset.like(dataset.values[ends[-1] - T :])
        title = "values never seen"
    print_test(model, dataset, about, title)


def predict_command(args):
    """Print the values that a model expects after the last row of a file, one a line."""
    model, _, dataset = dataset_of(args)
    window = dataset.like(dataset.values[-dataset.seq_length :])
    found = forecast(model, window, args.steps)[-1]
    for value in found:
        print(np.format_float_positional(value, precision=8, fractional=False, trim="-"))
    outside = (found < dataset.values.min()) | (found > dataset.values.max())
    if outside.any():
        print(
            f"from step {outside.argmax() + 1} on the forecast leaves the range of the values",
            file=sys.stderr,
        )


def whole(text, least=1, most=10**9):
    """A whole number from least to most."""
    number = int(text) if re.fullmatch("[0-9]{1,10}", text) else -1
    if not least <= number <= most:
        raise argparse.ArgumentTypeError(f"must be a whole number from {least} to {most}")
    return number


def number(text):
    """A number from 0 on."""
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number from 0 on, not {text}")
    return value


def picture(text):
    """The name of a picture that can be drawn."""
    if not text.endswith((".png", ".svg", ".pdf")):
        raise argparse.ArgumentTypeError(f"must end in .png, .svg or .pdf, not {text}")
    if not importlib.util.find_spec("matplotlib"):
        raise argparse.ArgumentTypeError("needs matplotlib: pip install matplotlib")
    return text


COMMANDS = {
    train_command: "learn from values (also without a command)",
    resume_command: "go on with a run that was stopped",
    test_command: "measure how well a model predicts other values",
    predict_command: "print the values after the last row",
}
SETTINGS = {  # of a run, which resume takes from the checkpoint: kind, default, meaning
    "column": (str, "open", "column of the values in the file"),
    "hidden_size": (partial(whole, most=4096), 32, "hidden units"),
    "seq_length": (whole, 20, "values in a window"),
    "batch_size": (whole, 32, "windows in a batch"),
    "learning_rate": (number, 3e-3, "first learning rate of AdamW, which falls to 0"),
    "val_fraction": (number, 0.15, "share of the values to validate"),
    "test_fraction": (number, 0.15, "share of the values to test"),
    "epochs": (whole, 100, "passes over the training part"),
    "seed": (partial(whole, least=0), 0, "seed of the random numbers"),
    "device": (str, "cpu", "where torch computes: cpu, cuda, mps"),
}


def parse(argv):
    """The arguments of the command line; a command that is left out is train."""
    meaning = "Next-value prediction with a recurrent network in torch."
    parser = argparse.ArgumentParser(prog="stock_rnn.py", description=meaning)
    commands = parser.add_subparsers(title="commands", required=True)
    for run, meaning in COMMANDS.items():
        name = run.__name__.removesuffix("_command")
        commands.add_parser(name, help=meaning).set_defaults(run=run)
    train, resume, test, predict = commands.choices.values()
    train.add_argument("prices", nargs="?", default=DATA, help="CSV file")
    for name, (kind, default, meaning) in SETTINGS.items():
        flag = "--" + name.replace("_", "-")
        train.add_argument(flag, type=kind, default=default, help=f"{meaning} ({default})")
    train.add_argument("--cell", choices=CELLS, default="rnn", help="kind of hidden layer (rnn)")
    meaning = "see StockDataset (relative, or difference for values that are not all above zero)"
    train.add_argument("--normalise", choices=NORMALISE, help=meaning)
    meaning = "file to save in; if it is there, NAME-2.pt, and so on (stock_rnn.pt)"
    train.add_argument("--checkpoint", metavar="PT", default="stock_rnn.pt", help=meaning)
    resume.add_argument("checkpoint", nargs="?", help="checkpoint (the newest stock_rnn*.pt)")
    resume.add_argument("prices", nargs="?", help="its CSV file, if it is elsewhere now")
    resume.add_argument("--epochs", type=whole, help="epochs in all")
    for command in (train, resume):
        meaning = "file for a picture of the test; needs matplotlib"
        command.add_argument("--plot", metavar="PNG", type=picture, help=meaning)
    predict.add_argument("--steps", type=whole, default=1, help="values ahead (1)")
    for command in (test, predict):
        command.add_argument("checkpoint", help="trained model")
        command.add_argument("prices", help="CSV file")
        command.add_argument("--column", help="column of the values (as in training)")
    if argv and argv[0] in (*commands.choices, "-h", "--help"):
        return parser.parse_args(argv)
    return parser.parse_args(["train", *argv])


def main(argv):
    """Run the command line; the exit status is 2 after a mistake, told in one line."""
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # exit silently when "| head" is done
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            encoding = stream.encoding if stream.isatty() else "utf-8"
            stream.reconfigure(encoding=encoding, errors="replace")
    try:
        args = parse(argv)
        return args.run(args)
    except KeyboardInterrupt:
        return 130
    except (Mistake, OSError, MemoryError) as error:
        print(f"stock_rnn.py: error: {str(error) or 'out of memory'}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
