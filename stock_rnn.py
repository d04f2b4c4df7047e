# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy>=1.26", "torch>=2.6"]
# ///
# SPDX-License-Identifier: MIT-0
"""Next-price prediction with a recurrent neural network in torch, from a CSV of prices to an honest test score.

    python stock_rnn.py                                 learn from two years of Bitcoin prices, in a few seconds
    python stock_rnn.py train my.csv --column Close     learn from your own prices
    python stock_rnn.py test stock_rnn.pt other.csv     how good is it on prices that it never saw?
    python stock_rnn.py predict stock_rnn.pt my.csv     the prices after the last row

One hidden layer reads a window of prices, one a step (x_t), and a linear layer says what comes after the last (y):

    a_t = tanh(Wax x_t + Waa a_{t-1} + ba)
    y   = Wya a_T + by
    L   = mean over windows of (y - target)^2

Every score stands beside that of the naive forecast, "the next price is the last price", because most networks that
look good on a chart have learned just that.

Shapes, everywhere below: N prices, T steps in a window (seq_length), B windows in a batch, H hidden units.
"""

import argparse
import copy
import csv
import hashlib
import io
import itertools
import math
import os
import re
import shlex
import signal
import sys
import time
import warnings
import zlib
from array import array
from datetime import datetime
from pathlib import Path

import numpy as np
import torch
from torch import nn

# ---------------------------------------------------------------------------------------------------------------------
# Data: from a CSV file to windows of prices and the price that follows each

KLINE = ("open_time", "open", "high", "low", "close", "volume", "close_time", "quote_volume", "count")
KLINE += ("taker_buy_volume", "taker_buy_quote_volume", "ignore")  # what Binance publishes, without a header
TIME_WORDS = {"time", "date", "datetime", "timestamp", "unix"}


def load_prices(path, column="open", every=1):
    """The prices in one column of a CSV file: (N,) float64, oldest first, every n-th row.

    The columns are named by a header, in any case, or are those of Binance's kline files, which have none. Lines before
    the header that are empty, start with # or have no second field are passed over. Rows are put in the order of the
    first column whose name has one of TIME_WORDS, where there is one, and stderr is told if that moved any.

    Raises ValueError for a file without such a column or without rows, for a price that is not a positive number, and
    for times that repeat or cannot be sorted, naming the line.
    """
    require_sizes(every=every)
    prices, times, lines = array("d"), [], array("q")
    with open(path, encoding="utf-8-sig", errors="replace", newline="") as file:
        names, rows, skipped = read_header(path, file, column)
        matches = [ix for ix, name in enumerate(names) if name.lower() == column.lower()]
        if not matches:
            raise ValueError(f"{path} has no column {column!r}; it has {', '.join(map(repr, names))}")
        price_column = min(matches, key=lambda ix: names[ix] != column)
        words = [re.sub("([a-z])([A-Z])", r"\1 \2", name).lower() for name in names]  # openTime: open time
        time_column = next(
            (ix for ix, text in enumerate(words) if TIME_WORDS & set(re.findall("[a-z]+", text))), None
        )
        try:
            for row in filter(None, rows):
                prices.append(price(row[price_column]))
                lines.append(rows.line_num)
                if time_column is not None:
                    times.append(moment(row[time_column]))
        except IndexError:
            raise ValueError(f"{path}, line {skipped + rows.line_num}: a column is missing") from None
        except (ValueError, csv.Error) as error:
            raise ValueError(f"{path}, line {skipped + rows.line_num}: {error}") from None
    if not prices:
        raise ValueError(f"{path} has no rows of prices")

    prices = np.array(prices)
    if times:
        try:
            order = np.array(sorted(range(len(times)), key=times.__getitem__))
        except TypeError:
            raise ValueError(
                f"{path}: its column {names[time_column]} has times of different kinds"
            ) from None
        for one, two in itertools.pairwise(order):
            if times[one] == times[two]:
                raise ValueError(
                    f"{path}, line {skipped + lines[two]}: the time of line {skipped + lines[one]} again"
                )
        if (np.diff(order) < 0).any():
            prices = prices[order]
            print(f"{path} was not oldest first: sorted by its column {names[time_column]}", file=sys.stderr)
    return np.ascontiguousarray(prices[::every])


def read_header(path, file, column):
    """The names of the columns of an open CSV file, a reader of its rows, and the number of lines before those."""
    first = None
    for skipped, line in enumerate(file):
        delimiter = max(",;\t", key=line.count)
        try:
            names = [
                name.strip() for name in next(csv.reader([line.replace("\0", " ")], delimiter=delimiter), [])
            ]
        except csv.Error as error:
            raise ValueError(f"{path}, line {skipped + 1}: {error}") from None
        if len(names) == len(KLINE) and names[0].isdigit():
            return KLINE, csv.reader(itertools.chain([line], file), delimiter=delimiter), skipped
        if not line.strip() or line.startswith("#"):
            continue
        first = first or names
        if len(names) > 1 or names[0].lower() == column.lower():
            return names, csv.reader(file, delimiter=delimiter), skipped + 1
    if not first:
        raise ValueError(f"{path} is empty")
    return first, csv.reader([]), 0


def price(text):
    """The price that a text stands for; raises ValueError unless it is a finite number above zero."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf or "_" in text:
        raise ValueError(f"{text!r} is not a positive price")
    return number


def moment(text):
    """The time that a text stands for: seconds since 1970, given in s, ms or us, or the datetime of an ISO date.

    Raises ValueError for anything else.
    """
    text = text.strip()
    try:
        if "-" in text[1:]:
            return datetime.fromisoformat(text.replace(" UTC", "+00:00").replace("Z", "+00:00"))
        number = float(text)
        if not math.isfinite(number):
            raise ValueError
    except ValueError:
        raise ValueError(
            f"the time {text!r} cannot be sorted; write it as 2017-10-01 20:00, or in seconds"
        ) from None
    return number / (1e6 if abs(number) > 1e14 else 1e3 if abs(number) > 1e11 else 1)


class StockDataset(torch.utils.data.Dataset):
    """Windows of prices, each with the price that follows it, as a network wants them.

    Item i is (window, target): the T prices from i on as (T, 1) float32, and the one after them as (1,). A list, slice
    or tensor of B indices gives a batch at once: (B, T, 1) and (B, 1).

        normalise="window"    x_t = (p_t / p_T - 1) / scale,  the target likewise: relative to the window's own last
                              price p_T, so that the level of the prices does not matter. scale is the standard
                              deviation of the relative change from one price to the next
        normalise="range"     x_t = 2 (p_t - low) / (high - low) - 1,  the target likewise; scale is (low, high)

    scale is fitted to these prices unless given: fit it on the training set and pass it on. Windows are views of one
    float32 series, 4 bytes a price; prices, for dollars, is the float64 array that came in, not a copy.

    Raises ValueError for prices that are too few, not finite, constant, or (with "window") not above zero.
    """

    def __init__(self, prices, seq_length, normalise="window", scale=None):
        require_sizes(seq_length=seq_length)
        self.prices, self.seq_length, self.normalise = np.asarray(prices, np.float64), seq_length, normalise
        if normalise not in ("window", "range"):
            raise ValueError(f"normalise must be window or range, not {normalise}")
        if self.prices.ndim != 1 or len(self.prices) <= seq_length:
            raise ValueError(
                f"prices are {self.prices.shape}, but a window of {seq_length} and the price after it need at least "
                f"{seq_length + 1} in one dimension"
            )
        low, high = self.prices.min(), self.prices.max()
        if not (math.isfinite(low) and math.isfinite(high)) or (normalise == "window" and low <= 0):
            raise ValueError(f"prices must be finite and above zero, not from {low} to {high}")
        if scale is None:
            if low == high:
                raise ValueError(f"all {len(self.prices)} prices are {low:g}: there is nothing to learn")
            changes = np.diff(self.prices) / self.prices[:-1]
            if normalise == "window" and np.ptp(changes) < 1e-9:
                raise ValueError(
                    f"every price is {changes[0]:+.6g} from the one before: there is nothing to learn"
                )
            scale = (low, high) if normalise == "range" else np.std(changes)
        self.scale = tuple(map(float, scale)) if normalise == "range" else float(scale)

        if normalise == "range":
            series = 2 * (self.prices - self.scale[0]) / (self.scale[1] - self.scale[0]) - 1
        else:
            # Logarithms of the change into each price: float32 holds them to 7 digits whatever the level, and their
            # sums over a window lead back to p_t / p_T.
            series = np.diff(np.log(self.prices), prepend=np.log(self.prices[0]))
        self.series = torch.from_numpy(series.astype(np.float32))
        self.to("cpu")

    def to(self, device):
        """Move the windows to a device; returns the dataset."""
        self.series = self.series.to(device)
        self.windows = self.series.unfold(0, self.seq_length + 1, 1)  # (N - T, T + 1), the target last
        return self

    def __len__(self):
        return len(self.windows)

    def __getitem__(self, index):
        rows = self.windows[index]
        if self.normalise == "window":
            rows = rows.cumsum(-1)
            rows = (
                torch.expm1(rows - rows[..., -2:-1]) / self.scale
            )  # p_t / p_T - 1 = exp(log p_t - log p_T) - 1
        return rows[..., :-1, None], rows[..., -1:]

    def to_price(self, prediction, index):
        """The prices, float64, that model outputs for the items at index stand for; the way back from a target."""
        if isinstance(prediction, torch.Tensor):
            prediction = prediction.detach().cpu()
        prediction = np.asarray(prediction, np.float64)
        if self.normalise == "range":
            low, high = self.scale
            return low + (prediction + 1) / 2 * (high - low)
        last = self.prices[self.seq_length - 1 : -1][np.asarray(index)]
        return last.reshape(last.shape + (1,) * (prediction.ndim - last.ndim)) * (1 + prediction * self.scale)


def split(prices, seq_length, val_fraction=0.15, test_fraction=0.15, normalise="window"):
    """Training, validation and test set, in the order of time, with one scale: that of the training prices alone.

    The last test_fraction of the prices are the targets of the test set, those before them of the validation set. Their
    first windows look back into the part before; no price is a target twice.
    Raises ValueError for fractions that leave a part empty, and for too few prices.
    """
    require_sizes(seq_length=seq_length)
    if not (val_fraction > 0 and test_fraction > 0 and val_fraction + test_fraction < 1):
        raise ValueError(
            f"val_fraction {val_fraction} and test_fraction {test_fraction} must each leave a part"
        )
    shares = ((seq_length + 1, 1 - val_fraction - test_fraction), (1, val_fraction), (1, test_fraction))
    needed = max(math.ceil(round(rows / share, 6)) for rows, share in shares)
    if len(prices) < needed:
        raise ValueError(
            f"{len(prices)} prices are too few: seq_length {seq_length}, val_fraction {val_fraction} and test_fraction "
            f"{test_fraction} need at least {needed}"
        )
    test_start = len(prices) - int(len(prices) * test_fraction)
    val_start = test_start - int(len(prices) * val_fraction)
    train_set = StockDataset(prices[:val_start], seq_length, normalise)
    val_set = StockDataset(
        prices[val_start - seq_length : test_start], seq_length, normalise, train_set.scale
    )
    test_set = StockDataset(prices[test_start - seq_length :], seq_length, normalise, train_set.scale)
    return train_set, val_set, test_set


def require_sizes(**sizes):
    """Raises ValueError unless every size is a whole number of at least 1 and less than 2^31."""
    for name, size in sizes.items():
        if not isinstance(size, (int, np.integer)) or size < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, not {size}")
        if size >= 1 << 31:
            raise ValueError(f"{name} {size} is too large")


# ---------------------------------------------------------------------------------------------------------------------
# Model


class RNN(nn.Module):
    """A tanh RNN over the window and a linear layer on its last step.

        a_t = tanh(Wax x_t + Waa a_{t-1} + ba)        y = Wya a_T + by

    (B, T, 1) to (B, 1). With num_layers above 1, the a_t of a layer are the x_t of the next. The linear layer starts at
    zero, so that with normalise="window" the untrained model is the naive forecast, and training improves on that.
    """

    def __init__(self, hidden_size=16, num_layers=1):
        super().__init__()
        require_sizes(hidden_size=hidden_size, num_layers=num_layers)
        self.rnn = nn.RNN(1, hidden_size, num_layers, nonlinearity="tanh", batch_first=True)
        self.linear = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

        # A large block that comes and goes makes glibc keep freed memory for the next step instead of returning it to
        # the system: large batches are about a third faster, and nothing else changes (mallopt(3), M_MMAP_THRESHOLD).
        np.empty(31 << 20, np.uint8)

    def forward(self, x):
        _, a_last = self.rnn(x)  # (num_layers, B, H)
        return self.linear(a_last[-1])


# ---------------------------------------------------------------------------------------------------------------------
# Training, and what a trained model is asked for


def train(
    model,
    train_set,
    val_set,
    epochs=60,
    batch_size=32,
    learning_rate=3e-4,
    weight_decay=0.1,
    report=None,
    state=None,
    stop=(),
):
    """Minimise the mean squared error with AdamW; returns {"train_loss": [...], "val_loss": [...]}, a value an epoch.

    The model ends with the weights of the epoch whose validation loss was lowest. Random numbers come from torch's own
    generator: torch.manual_seed before making the model repeats everything, to the last bit on the same machine.

    report(state), where given, is called after every epoch; such a state, passed back, goes on exactly from there,
    until there are epochs in all. Ends early, after a whole epoch, when stop turns true (say, a list that a signal
    handler appends to). Raises FloatingPointError when the loss is no longer a number.
    """
    require_sizes(epochs=epochs, batch_size=batch_size)
    if not (0 < learning_rate < math.inf and 0 <= weight_decay < math.inf):
        raise ValueError(
            f"learning_rate must be positive and weight_decay not negative, not {learning_rate} and {weight_decay}"
        )
    device = next(model.parameters()).device
    train_set, val_set = train_set.to(device), val_set.to(device)
    optimizer = torch.optim.AdamW(model.parameters(), learning_rate, weight_decay=weight_decay, fused=True)
    best, history = None, {"train_loss": [], "val_loss": []}
    if state:
        state = copy.deepcopy(state)
        best, history = state["best"], state["history"]
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"])

    while len(history["val_loss"]) < epochs and not stop:
        total = torch.zeros((), device=device)
        for rows in torch.randperm(len(train_set)).to(device).split(batch_size):
            x, target = train_set[rows]
            loss = nn.functional.mse_loss(model(x), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach() * len(rows)
        train_loss, val_loss = total.item() / len(train_set), evaluate(model, val_set)[0]
        if not (math.isfinite(train_loss) and math.isfinite(val_loss)):
            raise FloatingPointError(
                f"the loss became {train_loss} (validation {val_loss}) in epoch {len(history['val_loss']) + 1}: "
                f"try a learning rate lower than {learning_rate:g}"
            )
        if val_loss < min(history["val_loss"], default=math.inf):
            best = copy.deepcopy(model.state_dict())
        history["train_loss"].append(train_loss)
        history["val_loss"].append(val_loss)
        if report:
            report(training_state(model, optimizer, best, history))
    if best:
        model.load_state_dict(best)
    return history


def training_state(model, optimizer, best, history):
    """A copy of all that train needs to go on."""
    state = {
        "model": model.state_dict(),
        "best": best,
        "optimizer": optimizer.state_dict(),
        "history": history,
    }
    return copy.deepcopy({**state, "random": torch.get_rng_state()})


@torch.inference_mode()
def evaluate(model, dataset, batch_size=1024):
    """The mean squared error over a dataset, and the predictions (B, 1) for all of its items."""
    dataset.to(next(model.parameters()).device)
    predictions, squares = [], 0.0
    for start in range(0, len(dataset), batch_size):
        x, target = dataset[start : start + batch_size]
        predictions.append(model(x))
        squares += nn.functional.mse_loss(predictions[-1], target, reduction="sum").item()
    return squares / len(dataset), torch.cat(predictions)


def test(model, test_set):
    """How good the model is on a dataset, in the unit of its prices, and beside "the next price is the last price".

    loss is the mean squared error that training minimises; rmse, mae and naive_rmse are in dollars; theil_u is rmse /
    naive_rmse, and only a value under 1 says that the model knows more than the last price; direction is the share of
    the moves up and down that were predicted with the right sign. Raises ValueError when the prices never move.
    """
    loss, prediction = evaluate(model, test_set)
    predicted = test_set.to_price(prediction[:, 0], np.arange(len(test_set)))
    last, true = test_set.prices[test_set.seq_length - 1 : -1], test_set.prices[test_set.seq_length :]
    moved = true != last
    if not moved.any():
        raise ValueError(f"the {len(true)} prices to test on never move, which leaves nothing to predict")
    rmse, naive_rmse = root_mean_square(predicted - true), root_mean_square(last - true)
    return {
        "loss": loss,
        "rmse": rmse,
        "mae": float(np.abs(predicted - true).mean()),
        "naive_rmse": naive_rmse,
        "theil_u": rmse / naive_rmse,
        "direction": float((np.sign(predicted - last) == np.sign(true - last))[moved].mean()),
    }


def root_mean_square(errors):
    """The square root of the mean of the squares."""
    return float(np.sqrt(np.square(errors).mean()))


def forecast(model, prices, steps, seq_length=20, normalise="window", scale=None):
    """The `steps` prices after the last one, (steps,) float64, each fed back in to predict the next.

    Take seq_length, normalise and scale from the training set; without a scale, one is fitted to prices.
    """
    require_sizes(steps=steps)
    if scale is None:
        scale = StockDataset(prices, seq_length, normalise).scale
    if len(prices) < seq_length:
        raise ValueError(f"{len(prices)} prices are too few: a window needs {seq_length}")
    prices = list(prices[-seq_length:])
    for _ in range(steps):
        window = np.array(
            prices[-seq_length:] + prices[-1:]
        )  # a price must follow for an item, and is not read
        item = StockDataset(window, seq_length, normalise, scale)
        prices.append(item.to_price(evaluate(model, item)[1], 0).item())
    return np.array(prices[-steps:])


# ---------------------------------------------------------------------------------------------------------------------
# Checkpoints: all that testing, predicting and an exact resume need, in one file


def write_whole(path, data):
    """Write bytes to path whole or not at all: a temporary file beside it, fsync, and one rename."""
    path = os.path.realpath(path)  # a link goes on to point to what is written
    temporary = Path(f"{path}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(
            error.errno, f"cannot be written ({error.strerror}); what was there is untouched", path
        ) from None
    finally:
        temporary.unlink(missing_ok=True)


def save_checkpoint(path, state, about):
    """Save a state of training and about, a dict of settings and of the prices that it was trained on."""
    file = io.BytesIO()
    torch.save({"state": state, "about": about}, file)
    data = file.getvalue()
    write_whole(path, data + hashlib.sha256(data).digest())


def load_checkpoint(path):
    """The model of a checkpoint with its best weights, the state of its training, and what it was saved about.

    No code in the file is ever run. Raises ValueError for anything but a whole checkpoint of this script.
    """
    require_torch()
    data = Path(path).read_bytes()
    if hashlib.sha256(data[:-32]).digest() != data[-32:]:
        raise ValueError(f"{path} is damaged, or not a checkpoint of stock_rnn.py")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is wrong is told below
            found = torch.load(io.BytesIO(data[:-32]), map_location="cpu", weights_only=True)
        settings = {name: default for name, (default, _) in HYPERPARAMETERS.items()}
        scale = (0.0, 0.0) if found["about"]["settings"]["normalise"] == "range" else 0.0
        about = {"settings": settings, "scale": scale, "rows": 0, "seen": 0, "mark": 0}
        require_alike(found["about"], about, "about")
        settings, losses = found["about"]["settings"], found["state"]["history"]["val_loss"]
        model = RNN(settings["hidden_size"], settings["num_layers"])
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        model(torch.zeros(1, 1, 1)).sum().backward()
        optimizer.step()  # makes the moments, for their names and shapes
        history = {"train_loss": [0.0] * len(losses), "val_loss": [0.0] * len(losses)}
        state = training_state(model, optimizer, model.state_dict(), history)
        require_alike(found, {"about": found["about"], "state": state}, "the file")
        model.load_state_dict(found["state"]["best"])
    except Exception as error:  # whatever a file made by other hands may bring about
        text = error if isinstance(error, ValueError) else type(error).__name__
        raise ValueError(f"{path} is not a checkpoint of stock_rnn.py: {text}") from None
    return model, found["state"], found["about"]


def require_alike(found, like, where):
    """Raises ValueError unless found has the types, names, shapes and lengths of like, all the way down."""
    if type(found) is not type(like):
        raise ValueError(f"{where} is {type(found).__name__}, not {type(like).__name__}")
    if isinstance(like, torch.Tensor):
        found, like = ((tuple(tensor.shape), tensor.dtype) for tensor in (found, like))
        if found != like:
            raise ValueError(f"{where} is {found}, not {like}")
    if isinstance(like, (list, tuple)):
        found, like = dict(enumerate(found)), dict(enumerate(like))
    if isinstance(like, dict):
        if found.keys() != like.keys():
            raise ValueError(f"{where} has {list(found)}, not {list(like)}")
        for name in like:
            require_alike(found[name], like[name], f"{where}, {name}")


def require_torch():
    """Raises ValueError for a torch that is too old to open a checkpoint of unknown origin."""
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 6):
        raise ValueError(
            f"torch {torch.__version__} is too old: 2.6 is needed, where loading runs no code (CVE-2025-32434)"
        )


# ---------------------------------------------------------------------------------------------------------------------
# Command line

DATA = Path(__file__).parent / "data" / "btcusd_20h.csv"
CHECKPOINT = "stock_rnn.pt"
NEVER_SEEN = "prices never seen"
RANGE_RATE = 3e-3  # "range" starts far from the naive forecast, and has a way to go
HYPERPARAMETERS = {  # name: (default, what it is)
    "column": ("open", "column of prices in the file"),
    "every": (1, "take every N-th row, from the oldest on"),
    "normalise": (
        "window",
        "window: each window by its own last price; range: all to [-1, 1] by the training set",
    ),
    "hidden_size": (16, "hidden units"),
    "num_layers": (1, "hidden layers"),
    "seq_length": (20, "prices in a window"),
    "batch_size": (32, "windows in a batch"),
    "learning_rate": (3e-4, f"learning rate of AdamW; with --normalise range {RANGE_RATE} unless given"),
    "weight_decay": (0.1, "pull of the weights to zero"),
    "epochs": (60, "passes over the training set"),
    "val_fraction": (0.15, "share of the prices, before those of the test, held out for validation"),
    "test_fraction": (0.15, "share of the prices, at the end, held out for the test"),
    "seed": (0, "seed of the random numbers"),
}
DEVICES = ("auto", "cpu", "cuda", "mps")


class Progress:
    """A line on every epoch, which a terminal shows in place."""

    def __init__(self, epochs):
        self.epochs, self.first = epochs, None
        print(f"{'epoch':>8}{'training loss':>16}{'validation loss':>18}{'best epoch':>13}{'left':>9}")

    def __call__(self, history):
        val_loss = history["val_loss"]
        epoch, best, now = len(val_loss), val_loss.index(min(val_loss)) + 1, time.perf_counter()
        line = f"{epoch:>8}{history['train_loss'][-1]:>16.6f}{val_loss[-1]:>18.6f}{best:>13}"
        if self.first is None:
            self.first = epoch, now  # torch gets ready during the first epoch: its time tells nothing
        else:
            left = min((now - self.first[1]) / (epoch - self.first[0]) * (self.epochs - epoch), 359_999)
            line += f"{left // 60:>6.0f}:{left % 60:02.0f}"
        in_place, last = sys.stdout.isatty(), epoch >= self.epochs
        print(f"\r{line}" if in_place else line, end="\n" if last or not in_place else "", flush=True)


def train_command(args):
    """Train on a file of prices, with all that belongs to a run, and test on its last part."""
    outputs = [path for path in (args.checkpoint, args.log, args.plot) if path is not None]
    for path in outputs:
        if not os.path.basename(path):
            raise ValueError(f"{path!r} cannot be written: it names no file")
        if os.path.exists(path) and not os.path.isfile(path):
            raise ValueError(f"{path} cannot be written: it is a folder or a device")
        if not os.access(Path(path).resolve().parent, os.W_OK):
            raise ValueError(f"{path} cannot be written: its folder is missing or read-only")
        if [os.path.realpath(other) for other in (args.prices, *outputs)].count(os.path.realpath(path)) > 1:
            raise ValueError(f"{path} is named twice: what is read and each file that is written must differ")
    if args.plot and not args.plot.lower().endswith(".png"):
        raise ValueError(f"{args.plot} cannot be drawn: the picture is a PNG, and its name must end in .png")
    pyplot = import_pyplot() if args.plot else None
    given = {name: value for name, value in vars(args).items() if name in HYPERPARAMETERS}
    settings, state = {name: default for name, (default, _) in HYPERPARAMETERS.items()}, None
    if args.resume:
        _, state, about = load_checkpoint(args.checkpoint)
        settings = about["settings"]
        for name in sorted(given.keys() - {"epochs"}):
            if given[name] != settings[name]:
                raise ValueError(
                    f"{args.checkpoint} was trained with {name} {settings[name]}, not {given[name]}"
                )
    elif given.get("normalise") == "range":
        settings["learning_rate"] = RANGE_RATE
    settings = {**settings, **given}
    require_sizes(epochs=settings["epochs"], batch_size=settings["batch_size"])
    device = pick_device(args.device, settings)

    prices = load_prices(args.prices, settings["column"], settings["every"])
    names = ("seq_length", "val_fraction", "test_fraction", "normalise")
    train_set, val_set, test_set = split(prices, **{name: settings[name] for name in names})
    seen = len(prices) - len(test_set)
    now = {"settings": settings, "scale": train_set.scale, "rows": len(prices), "seen": seen}
    now["mark"] = zlib.crc32(prices[:seen].tobytes())
    if args.resume and any(now[name] != about[name] for name in ("rows", "mark")):
        raise ValueError(f"{args.checkpoint} was trained on other prices than those of {args.prices}")
    torch.manual_seed(settings["seed"])
    model = RNN(settings["hidden_size"], settings["num_layers"]).to(device)

    print(f"{Path(args.prices).name}: {len(prices):,} prices")
    print(
        f"training on the first {seen - len(val_set):,}, validation on {len(val_set):,}, test on {len(test_set):,}"
    )
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{settings['hidden_size']} hidden units, {parameters:,} parameters, on {device}")
    if args.resume:
        print(f"going on with {args.checkpoint} after epoch {len(state['history']['val_loss'])}")
    else:
        if os.path.exists(args.checkpoint):
            write_whole(f"{args.checkpoint}.old", Path(args.checkpoint).read_bytes())
            print(f"{args.checkpoint} was there already: kept as {args.checkpoint}.old")
        says = (
            "the last price" if settings["normalise"] == "window" else "in the middle of the training range"
        )
        loss, _ = evaluate(model, val_set)
        print(f"before training it says that the next price is {says}: validation loss {loss:.6f}")
    print(flush=True)

    progress = Progress(settings["epochs"])

    def report(state):
        progress(state["history"])
        save_checkpoint(args.checkpoint, state, now)
        if args.log:
            write_log(args.log, state["history"])

    stop = []  # signals that came in

    def finish(number, _):
        stop.append(number)
        signal.signal(number, signal.SIG_DFL)
        print("\nfinishing the epoch under way; once more ends at once", flush=True)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, finish)
    names = ("epochs", "batch_size", "learning_rate", "weight_decay")
    sizes = {name: settings[name] for name in names}
    history = train(model, train_set, val_set, **sizes, report=report, state=state, stop=stop)
    if stop and not history["val_loss"]:
        print("stopped before the first epoch: nothing is saved", flush=True)
        return 128 + stop[0]
    if stop:
        files = [f"--{name}={path}" for name, path in (("log", args.log), ("plot", args.plot)) if path]
        command = shlex.join(
            [sys.argv[0], "train", args.prices, "--checkpoint", args.checkpoint, *files, "--resume"]
        )
        print(f"\nstopped after epoch {len(history['val_loss'])}; to go on:  python {command}", flush=True)
        return 128 + stop[0]

    if args.log:
        write_log(args.log, history)
    print(f"\nvalidation loss {min(history['val_loss']):.6f}, the best of the run")
    print_test(model, test_set, NEVER_SEEN)
    print_forecast(model, prices, 1, now)
    if pyplot:
        plot(pyplot, args.plot, model, test_set, history)
        print(f"prices and loss curves in {args.plot}")
    print(
        "try next: --plot prices.png to see it, other values of --seed to tell skill from luck, prices of your own"
    )
    command = shlex.join([sys.argv[0], "predict", args.checkpoint, args.prices, "--steps", "5"])
    print(f"saved in {args.checkpoint}; for more prices:  python {command}")
    return 0


def pick_device(name, settings):
    """The torch device to train on. auto takes CUDA where a step has work enough to outweigh its launch.

    Where it has not, a second CPU thread would not help either, and would wait for the first on a busy machine.
    """
    enough = settings["batch_size"] * settings["hidden_size"] >= 1 << 14
    if not enough:
        torch.set_num_threads(1)
    if name == "auto":
        name = "cuda" if enough and torch.cuda.is_available() else "cpu"
    if name not in DEVICES:
        raise ValueError(f"device must be one of {', '.join(DEVICES)}, not {name}")
    if (name == "cuda" and not torch.cuda.is_available()) or (
        name == "mps" and not torch.backends.mps.is_available()
    ):
        raise ValueError(f"device {name} is not available here")
    os.environ.setdefault(
        "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
    )  # without it, cuDNN's RNN may differ from run to run
    return torch.device(name)


def print_test(model, test_set, title):
    """A table of the test figures, the naive forecast beside the model, and what it comes to in plain words."""
    figures = test(model, test_set)
    changes = np.abs(np.diff(test_set.prices[test_set.seq_length - 1 :]))
    u, digits = figures["theil_u"], max(2, 3 - math.floor(math.log10(figures["naive_rmse"])))
    print(f"\n{f'test on {len(test_set):,} {title}':<34}{'model':>12}{'naive':>12}")
    print(
        f"{'root mean square error':<34}{figures['rmse']:>12,.{digits}f}{figures['naive_rmse']:>12,.{digits}f}"
    )
    print(f"{'mean absolute error':<34}{figures['mae']:>12,.{digits}f}{changes.mean():>12,.{digits}f}")
    print(f"{'moves with the right sign':<34}{figures['direction']:>12.1%}{'-':>12}")
    name = "Theil's U"
    print(f"{name:<34}{u:>12.4f}{1:>12.4f}\n")
    if round(u, 4) < 1:
        print(f"The model's error is {1 - u:.2%} below that of saying that the next price is the last price.")
    else:
        print(
            "The model does not beat the naive forecast: saying that the next price is the last price is as good."
        )


def print_forecast(model, prices, steps, about):
    """The last price, and those that the model expects after it, one a line."""
    settings = about["settings"]
    following = forecast(model, prices, steps, settings["seq_length"], settings["normalise"], about["scale"])
    print(f"\nlast price {prices[-1]:,.7g}; next:" + "".join(f"\n{price:,.7g}" for price in following))


def write_log(path, history):
    """Write the losses of every epoch as CSV."""
    file = io.StringIO()
    rows = zip(itertools.count(1), history["train_loss"], history["val_loss"])
    csv.writer(file).writerows([("epoch", *history), *rows])
    write_whole(path, file.getvalue().encode())


def import_pyplot():
    """matplotlib.pyplot, drawing to files; raises ValueError that says how to get it."""
    try:
        import matplotlib
    except ImportError:
        raise ValueError("--plot needs matplotlib:  pip install matplotlib") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def plot(pyplot, path, model, test_set, history):
    """Draw the test part's prices, true, predicted and naive, and under them the two loss curves."""
    T = test_set.seq_length
    predicted = test_set.to_price(evaluate(model, test_set)[1][:, 0], np.arange(len(test_set)))
    figure, (prices, losses) = pyplot.subplots(2, figsize=(9, 9), height_ratios=(2, 1), layout="constrained")
    prices.plot(test_set.prices[T:], label="true", linewidth=2)
    prices.plot(predicted, label="predicted")
    prices.plot(test_set.prices[T - 1 : -1], ":", label="naive: the last price")
    prices.set(xlabel="row of the test part", ylabel="price")
    for name, label in (("train_loss", "training"), ("val_loss", "validation")):
        losses.plot(range(1, len(history[name]) + 1), history[name], label=label)
    losses.set(xlabel="epoch", ylabel="mean squared error")
    for axes in (prices, losses):
        axes.legend()
        axes.grid(alpha=0.3)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=150)
    write_whole(path, picture.getvalue())


def test_command(args):
    """Test a checkpoint on all prices in a file that it was not trained on."""
    model, prices, about = open_both(args)
    settings, seen, title = about["settings"], about["seen"], "prices"
    if len(prices) > seen and zlib.crc32(prices[:seen].tobytes()) == about["mark"]:
        print(
            f"{args.prices} begins with the {seen:,} prices of training and validation: the rest is the test"
        )
        prices = prices[seen - settings["seq_length"] :]
        title = NEVER_SEEN
    print_test(
        model, StockDataset(prices, settings["seq_length"], settings["normalise"], about["scale"]), title
    )
    return 0


def predict_command(args):
    """Print the prices that a checkpoint expects after the last row of a file."""
    model, prices, about = open_both(args)
    print_forecast(model, prices, args.steps, about)
    return 0


def open_both(args):
    """The model of a checkpoint, the prices of a file, and what the checkpoint was saved about."""
    model, _, about = load_checkpoint(args.checkpoint)
    given = {name: getattr(args, name, about["settings"][name]) for name in ("column", "every")}
    return model, load_prices(args.prices, **given), about


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line."""

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message}; see  python {self.prog} --help\n")


def parse(argv):
    """The arguments of the command line; without a command, those of train."""
    parser = Parser(
        prog="stock_rnn.py",
        description="Next-price prediction with a recurrent neural network in torch.",
        epilog="What can be set is listed by:  python stock_rnn.py train --help",
    )
    commands = parser.add_subparsers(title="commands", metavar="{train,test,predict}", required=True)

    def add(command, name, default=""):
        value, what = HYPERPARAMETERS[name]
        command.add_argument(
            "--" + name.replace("_", "-"),
            type=type(value),
            default=argparse.SUPPRESS,
            metavar={int: "N", float: "X", str: "NAME"}[type(value)],
            help=f"{what} (default: {default or value})",
        )

    train = commands.add_parser("train", help="learn from a file of prices (the command when none is given)")
    train.set_defaults(run=train_command)
    train.add_argument("prices", nargs="?", default=str(DATA), help="CSV file (default: data/btcusd_20h.csv)")
    for name in HYPERPARAMETERS:
        add(train, name)
    train.add_argument(
        "--device", default="auto", metavar="NAME", help=f"one of {', '.join(DEVICES)} (default: %(default)s)"
    )
    train.add_argument(
        "--checkpoint", default=CHECKPOINT, metavar="FILE", help="where to save (default: %(default)s)"
    )
    train.add_argument(
        "--resume", action="store_true", help="go on exactly where the checkpoint was saved last"
    )
    train.add_argument("--log", metavar="CSV", help="write epoch, train_loss, val_loss to this file")
    train.add_argument(
        "--plot", metavar="PNG", help="draw the prices and loss curves in this file (needs matplotlib)"
    )

    test = commands.add_parser("test", help="how good a trained model is on a file of prices")
    test.set_defaults(run=test_command)
    predict = commands.add_parser("predict", help="the prices after the last row taken from a file")
    predict.set_defaults(run=predict_command)
    for command in (test, predict):
        command.add_argument("checkpoint", help="checkpoint to read")
        command.add_argument("prices", help="CSV file")
        for name in ("column", "every"):
            add(command, name, "as in training")
    predict.add_argument(
        "--steps", type=int, default=1, metavar="N", help="prices to predict (default: %(default)s)"
    )

    if not argv or argv[0] not in ("train", "test", "predict", "-h", "--help"):
        argv = ["train", *argv]
    return parser.parse_args(argv)


def main(argv=None):
    """Run the command line; returns the exit status: 0, 2 for a mistake told in one line, 130 or 143 when stopped."""
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # be quiet when "| head" has seen enough
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115  (a closed one is None)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")
    try:
        args = parse(sys.argv[1:] if argv is None else argv)
        require_torch()
        return args.run(args)
    except KeyboardInterrupt:
        return 130
    except (
        ValueError,
        OSError,
        ArithmeticError,
        MemoryError,
        RuntimeError,
    ) as error:  # torch's own are RuntimeErrors
        text = (
            f"{error.filename}: {error.strerror}"
            if isinstance(error, OSError) and error.filename
            else str(error)
        )
        text = " ".join(text.split())
        print(f"stock_rnn.py: error: {text}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
