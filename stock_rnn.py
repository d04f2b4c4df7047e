# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy>=1.26", "torch>=2.6"]
# ///
# SPDX-License-Identifier: MIT-0
"""Next-price prediction with a recurrent neural network in torch, from a CSV file to an honest test score.

    python stock_rnn.py                                learn from two years of Bitcoin prices, in seconds
    python stock_rnn.py train my.csv --column Close    learn from your own prices
    python stock_rnn.py test stock_rnn.pt other.csv    measure how well it predicts other prices
    python stock_rnn.py predict stock_rnn.pt my.csv    the prices after the last row

One hidden layer reads a window of prices, one a step (x_t), and a linear layer says what comes next (y):

    a_t = tanh(Waa a_{t-1} + Wax x_t + ba)
    y   = Wya a_T + by
    L   = mean over windows of (y - target)^2

Every score stands beside that of the naive forecast, "the next price is the last price", because most
networks that look good on a chart have learned just that. Any series of positive values will do.

Shapes, everywhere below: N prices, T steps in a window (seq_length), B windows in a batch, H hidden units.
"""

import argparse
import contextlib
import copy
import csv
import io
import itertools
import math
import os
import re
import shlex
import signal
import sys
import zipfile
import zlib
from datetime import datetime, timezone
from pathlib import Path

# One thread: on a busy machine, threads that wait for each other are 10 to 50 times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, SequentialSampler

# ------------------------------------------------------------------------------------------------------------
# Data: from a CSV file to windows of prices and the price that follows each

KLINE = [
    "open_time",
    "open",
    "high",
    "low",
    "close",
    "volume",
    "close_time",
]  # and five more, at Binance
MISSING = {"", "null", "none", "nan", "na", "n/a", "#n/a", "#n/a n/a", "-", "."}
PRICE = re.compile(r"[$€£¥]? ?(\d+|\d{1,3}(,\d{3})+)(\.\d*)? ?[$€£¥]?")  # 1,403.13 but not 1403,13
DAYS = ["%m-%d-%Y", "%d-%m-%Y", "%m-%d-%y", "%d-%m-%y", "%Y-%m-%d", "%d-%b-%Y", "%d-%b-%y"]
DAYS = [day.replace("-", sign) for day in DAYS for sign in "/.-"] + [
    "%b %d, %Y",
    "%d %b %Y",
    "%Y%m%d",
]
CLOCKS = ["", " %H:%M", " %H:%M:%S", " %H:%M:%S.%f", " %I:%M %p", " %I:%M:%S %p", " %H%M%S"]
TIME_FORMS = ["number", "ISO", "%Y-%m", *(day + clock for day in DAYS for clock in CLOCKS)]
EPOCH = datetime(1970, 1, 1)


def load_prices(path, column="open", every=1):
    """The prices in one column of a CSV file: (N,) float64, oldest first, every n-th row.

    Rows without a price are skipped, rows out of order are sorted by their times, and of rows with the same
    time the first is kept; a line on stderr tells of each. Without times, the order is that of the file.
    Raises ValueError for a file without such a column, a price that is not a positive number, times that
    cannot be read, and two prices at one time that differ by more than 1 %.
    """
    if every < 1:
        raise ValueError(f"every must be at least 1, not {every}")
    prices, lines, missing, times = [], [], [], {}  # times: for each column of times, its cells
    with open(path, encoding="utf-8-sig", errors="replace", newline="") as file:
        names, at, rows, delimiter = read_header(path, file, column.lower())
        for row in filter(None, rows):
            cell, line = row[at].strip() if at < len(row) else "", rows.line_num
            price = to_number(cell, delimiter)
            word = price is None and not cell[:1].isdigit()
            if not prices and (word or row[0].lower() in ("ticker", "date", "datetime")):
                continue  # a further header row: yfinance has two
            if price is None or price <= 0 or price == math.inf:
                raise ValueError(
                    f"{path}, line {line}: {cell!r} is not a positive number such as 1403.13"
                )
            if math.isnan(price):
                missing.append(line)
                continue
            if not prices:
                times = {ix: [] for ix in time_columns(names, row)}
            prices.append(price)
            lines.append(line)
            for ix, cells in times.items():
                cells.append(row[ix].strip() if ix < len(row) else "")
    if not prices:
        raise ValueError(f"{path} has no number in column {column!r}")
    prices, lines, told = np.array(prices), np.array(lines), {"without a price: skipped": missing}
    if times:
        seconds = read_times(path, list(times.values()), lines)
        told["older than the row above: sorted"] = lines[1:][np.diff(seconds) < 0]
        order = np.argsort(
            seconds, kind="stable"
        )  # of rows with the same time, the first stays first
        seconds, prices, lines = seconds[order], prices[order], lines[order]
        again = np.append(False, np.diff(seconds) == 0)
        told["at the time of another: dropped"] = lines[again]
        for i in np.flatnonzero(again & (abs(prices / np.roll(prices, 1) - 1) > 0.01)):
            what = f"line {lines[i]} has the time of line {lines[i - 1]} and another price"
            raise ValueError(f"{path}: {what}: several series in one file?")
        prices = prices[~again]
    for what, found in told.items():
        if len(found):
            print(
                f"{path}: {len(found):,} rows {what} (the first in line {min(found)})",
                file=sys.stderr,
            )
    return prices[::every]


def read_header(path, file, column):
    """The column names, the place of the column, the rows below, the delimiter; Binance has no header."""
    head = list(itertools.islice(file, 50))
    if head and head[0].startswith(
        "\ufffd\ufffd"
    ):  # what became of the two bytes that UTF-16 begins with
        raise ValueError(f"{path} looks like UTF-16: save it as UTF-8")
    for delimiter in ",;\t":
        rows = csv.reader(itertools.chain(head, file), delimiter=delimiter)
        for row in itertools.islice(rows, len(head)):
            names = [name.strip(" <>").lower() for name in row]
            if names.count(column) > 1:
                raise ValueError(
                    f"{path}, line {rows.line_num} names {column!r} {names.count(column)} times"
                )
            if column in names:
                return names, names.index(column), rows, delimiter
    delimiter = max(",;\t", key="".join(head).count)
    table = [row for row in csv.reader(head, delimiter=delimiter) if row] or [[""]]
    if len(table[0]) == 12 and column in KLINE and None not in map(to_number, table[0]):
        return KLINE, KLINE.index(column), csv.reader(itertools.chain(head, file)), ","
    header = next(row for row in table if len(row) == len(table[-1]))
    numeric = [
        name for name, cell in zip(header, table[-1]) if to_number(cell) and to_number(name) is None
    ]
    hint = (
        f"try --column {' or '.join(map(shlex.quote, numeric))}"
        if numeric
        else "its first line must name it"
    )
    raise ValueError(f"{path} has no column {column!r}: {hint}")


def to_number(cell, delimiter=","):
    """A cell as a number, with or without a currency sign; nan where it is missing, None for any other."""
    try:
        return None if "_" in cell else float(cell)  # Python would read 1_000
    except ValueError:
        if cell.lower() in MISSING:
            return math.nan
    known = PRICE.fullmatch(cell) and ("," not in cell or "." in cell or delimiter == ",")
    return float(re.sub("[^0-9.]", "", cell)) if known else None


def time_columns(names, row):
    """The columns whose name says that they hold times or, where none does, those that begin with a date."""
    named = [
        ix for ix, name in enumerate(names) if re.search(r"\btime|time\b|date|unix|_at\b", name)
    ]
    words = [ix for ix, cell in enumerate(row) if to_number(cell) is None]
    return named or [
        ix for ix in words if any(len(read_column([row[ix]], form)) for form in TIME_FORMS)
    ]


def read_times(path, columns, lines):
    """Seconds since 1970, (N,), from the first of the columns that one of TIME_FORMS reads as a whole. Dates
    in one column and times of day in another are read as one; where day and month could be mistaken for each
    other, the right form is the one that puts the rows in order."""
    clocks = [cells for cells in columns if re.fullmatch(r"\d\d?:\d\d.*|\d{6}", cells[0])]
    days = [cells for cells in columns if not re.fullmatch(r"\d\d?:\d\d.*|\d{6}", cells[0])]
    if clocks and days:
        columns = [[f"{day} {clock}" for day, clock in zip(days[0], clocks[0])]]
    for cells in columns:
        found, longest = [], 0
        for form in TIME_FORMS:
            seconds = read_column(cells, form)
            longest = max(longest, len(seconds))
            if len(seconds) == len(cells) and np.isfinite(seconds).all():
                found.append(seconds)
                if form[:2] not in ("%d", "%m"):  # which can be taken for each other
                    break
        in_order = [s for s in found if (np.diff(s) >= 0).all() or (np.diff(s) <= 0).all()]
        if in_order or len(found) == 1:
            return (in_order or found)[0]
    at = min(longest, len(cells) - 1)
    raise ValueError(
        f"{path}, line {lines[at]}: the time {cells[at]!r} is unclear; 2017-10-01 20:00 is not"
    )


def read_column(cells, form):
    """Seconds since 1970 of each cell, in UTC unless it names a zone, up to the first in another form."""
    seconds = []
    with contextlib.suppress(ValueError):
        for cell in cells:
            if form == "number":
                seconds.append(float(cell))
                continue
            if form == "ISO":
                moment = datetime.fromisoformat(cell.removesuffix("Z").removesuffix(" UTC"))
            else:
                moment = datetime.strptime(cell, form)
            epoch = EPOCH.replace(tzinfo=timezone.utc) if moment.tzinfo else EPOCH
            seconds.append((moment - epoch).total_seconds())
    for _ in range(
        2
    ):  # what is in microseconds becomes milliseconds, and what is in milliseconds seconds
        seconds = np.where(np.abs(seconds) > 1e11, np.divide(seconds, 1000), seconds)
    return seconds


class StockDataset(Dataset):
    """Windows of prices, each with the price that follows it, as a network wants them.

    Item i is (window, target): the T prices from i on as (T, 1) float32, and the one after them as (1,). A
    list, slice or tensor of B indices gives a batch: (B, T, 1) and (B, 1). Each price p becomes

        x = (p - centre) / unit        and back, from a model's output:        p = centre + unit * output
        normalise="window"    centre = p_T, the last price of the window, and unit = scale * p_T, where scale
                              is the standard deviation of the relative changes from one price to the next
        normalise="range"     (centre, unit) = scale = the middle and half of the range: x is from -1 to 1

    scale is fitted to these prices unless given: fit it on the training part and pass it on.
    Raises ValueError for prices that are too few, not finite, constant, or (with "window") not above zero.
    """

    def __init__(self, prices, seq_length, normalise="window", scale=None):
        self.prices, self.seq_length, self.normalise = (
            np.array(prices, np.float64),
            seq_length,
            normalise,
        )
        if normalise not in ("window", "range"):
            raise ValueError(f"normalise must be window or range, not {normalise}")
        if self.prices.ndim != 1 or not 1 <= seq_length < len(self.prices):
            raise ValueError(
                f"{self.prices.shape} prices do not hold a window of {seq_length} and one more"
            )
        low, high = float(self.prices.min()), float(self.prices.max())
        if not math.isfinite(high - low) or (normalise == "window" and low <= 0):
            raise ValueError(f"prices must be finite and above zero, not from {low} to {high}")
        if scale is None:
            scale = middle, unit = (high + low) / 2, (high - low) / 2
            if normalise == "window":
                scale = unit = float(np.std(np.diff(self.prices) / self.prices[:-1]))
            if unit < 1e-12:
                raise ValueError(
                    f"prices from {low:g} to {high:g} that all change alike: nothing to learn"
                )
        self.scale = scale
        self.windows = torch.from_numpy(self.prices).unfold(
            0, seq_length + 1, 1
        )  # (N - T, T + 1), a view

    def __len__(self):
        return len(self.windows)

    def __getitem__(self, index):
        rows = self.windows[index]  # the target last
        centre, unit = self.centre_and_unit(rows[..., -2:-1])
        x = ((rows - centre) / unit).float()
        return x[..., :-1, None], x[..., -1:]

    def centre_and_unit(self, last):
        """The two numbers of the formula for windows that end in the price `last`."""
        return (last, self.scale * last) if self.normalise == "window" else self.scale

    def to_price(self, output, last):
        """The price that a model's output stands for, after a window that ends in the price `last`."""
        centre, unit = self.centre_and_unit(last)
        return centre + unit * output


def split(prices, seq_length, val_fraction=0.15, test_fraction=0.15, normalise="window"):
    """Training, validation and test set, in the order of time, with the scale of the training prices alone.
    The last test_fraction of the prices are the targets of the test set, those before them of the validation
    set; first windows look back into the part before. Raises ValueError where a part would be empty."""
    test_start = len(prices) - int(len(prices) * min(test_fraction, 1))
    val_start = test_start - int(len(prices) * min(val_fraction, 1))
    if not seq_length < val_start < test_start < len(prices):
        sizes = f"seq_length {seq_length}, val_fraction {val_fraction} and test_fraction {test_fraction}"
        raise ValueError(f"{len(prices)} prices are too few for {sizes}: every part needs a target")
    train_set = StockDataset(prices[:val_start], seq_length, normalise)
    options = seq_length, normalise, train_set.scale
    val_set = StockDataset(prices[val_start - seq_length : test_start], *options)
    return train_set, val_set, StockDataset(prices[test_start - seq_length :], *options)


def batches(dataset, batch_size, shuffle=False):
    """A DataLoader that asks the dataset for whole batches, which is faster than item by item: its sampler
    gives lists of indices, and so batch_size is None. Only with shuffle are random numbers drawn."""
    order = RandomSampler(dataset) if shuffle else SequentialSampler(dataset)
    order = BatchSampler(order, batch_size, drop_last=False)
    return DataLoader(dataset, batch_size=None, sampler=order, generator=torch.Generator())


# ------------------------------------------------------------------------------------------------------------
# Model, training, and what a trained model is asked for


class RNN(nn.Module):
    """A tanh RNN over the window and a linear layer on its last step, (B, T, 1) to (B, 1).

        a_t = tanh(Waa a_{t-1} + Wax x_t + ba)        y = Wya a_T + by

    With num_layers above 1, the a_t of a layer are the x_t of the next. The linear layer starts at zero, so
    that with normalise="window" the untrained model is the naive forecast, and training improves on that.
    """

    def __init__(self, hidden_size=16, num_layers=1):
        super().__init__()
        self.rnn = nn.RNN(1, hidden_size, num_layers, nonlinearity="tanh", batch_first=True)
        self.linear = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x):
        _, a_last = self.rnn(x)  # (num_layers, B, H)
        return self.linear(a_last[-1])


class Naive(nn.Module):
    """The naive forecast as a model: the next price is the last price, y = x_T."""

    def forward(self, x):
        return x[:, -1]


def train(
    model,
    train_loader,
    val_loader,
    epochs=60,
    learning_rate=3e-4,
    weight_decay=0.1,
    report=None,
    state=None,
):
    """Minimise the mean squared error with AdamW; returns {"train_loss": [...], "val_loss": [...]} by epoch.

    The loaders give batches (x, target). The model ends with the weights of the epoch whose validation loss
    was lowest. report(state), where given, is called after every epoch; such a state, passed back, goes on
    exactly from there. A seed set before the model is made repeats everything on the same machine. Raises
    ValueError for epochs below 1, and when the loss is no longer finite.
    """
    if epochs < 1:
        raise ValueError(f"epochs must be at least 1, not {epochs}")
    optimizer = torch.optim.AdamW(model.parameters(), learning_rate, weight_decay=weight_decay)
    history, best = {"train_loss": [], "val_loss": []}, copy.deepcopy(model.state_dict())
    if state:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        history, best = copy.deepcopy(state["history"]), state["best"]
        torch.set_rng_state(state["random"])
    for epoch in range(len(history["val_loss"]), epochs):
        model.train()
        total, count = 0.0, 0
        for batch in train_loader:
            loss, output = squared_error(model, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total, count = total + loss.item() * len(output), count + len(output)
        train_loss, val_loss = total / count, evaluate(model, val_loader)[0]
        if not math.isfinite(train_loss + val_loss):
            raise ValueError(
                f"no finite loss in epoch {epoch + 1}: try a rate below {learning_rate:g}"
            )
        if val_loss < min(history["val_loss"], default=math.inf):
            best = copy.deepcopy(model.state_dict())
        history["train_loss"].append(train_loss)
        history["val_loss"].append(val_loss)
        if report:
            random = torch.get_rng_state()
            state = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "history": history,
            }
            report(copy.deepcopy(state | {"best": best, "random": random}))
            torch.set_rng_state(random)  # whatever report draws, training goes on as without it
    model.load_state_dict(best)
    return history


def squared_error(model, batch):
    """The mean squared error of a model on a batch (x, target), and its outputs."""
    device = next(
        model.parameters(), torch.empty(0)
    ).device  # without parameters, the default device
    x, target = (part.to(device) for part in batch)
    output = model(x)
    if output.shape != target.shape:  # torch would broadcast them, and learn something else
        raise ValueError(
            f"the model answers {tuple(output.shape)} where targets are {tuple(target.shape)}"
        )
    return nn.functional.mse_loss(output, target), output


@torch.inference_mode()
def evaluate(model, loader):
    """The mean squared error over the batches of a loader, in eval mode, and the outputs in its order."""
    model.eval()
    losses, outputs = zip(*(squared_error(model, batch) for batch in loader))
    loss = np.average([loss.item() for loss in losses], weights=[len(output) for output in outputs])
    return float(loss), torch.cat(outputs)


def predict(model, dataset):
    """The predicted prices for all windows of a StockDataset, (N - T,) float64."""
    outputs = evaluate(model, batches(dataset, 1024))[1]
    return dataset.to_price(
        outputs[:, 0].double().cpu().numpy(), dataset.prices[dataset.seq_length - 1 : -1]
    )


def test(model, test_set):
    """How good a model is on a StockDataset, beside the naive forecast; rmse and mae in the prices' unit.

    loss is what training minimises, theil_u is rmse / naive_rmse, and direction the share of moves whose sign
    was predicted. t is the statistic of Diebold and Mariano (1995) for one step ahead, over the N targets:

        d_i = (naive error_i)^2 - (model error_i)^2        t = mean(d) / (std(d) / sqrt(N))

    Only a t beyond 2 or -2 is more than chance explains. Raises ValueError when the prices never move.
    """
    last, true = (
        test_set.prices[test_set.seq_length - 1 : -1],
        test_set.prices[test_set.seq_length :],
    )
    moved = true != last
    if not moved.any():
        raise ValueError(
            f"the {len(true)} prices to test on never move, which leaves nothing to predict"
        )
    loss, predicted = evaluate(model, batches(test_set, 1024))[0], predict(model, test_set)
    error, naive_error = predicted - true, last - true
    d = naive_error**2 - error**2
    rmse, naive_rmse = math.sqrt(np.mean(error**2)), math.sqrt(np.mean(naive_error**2))
    t = float(d.mean() / (d.std() / math.sqrt(len(d)))) if d.std() else 0.0
    right = np.sign(predicted - last)[moved] == np.sign(true - last)[moved]
    figures = {"rmse": rmse, "mae": float(np.mean(abs(error))), "naive_rmse": naive_rmse}
    return figures | {
        "loss": loss,
        "theil_u": rmse / naive_rmse,
        "t": t,
        "direction": float(np.mean(right)),
    }


def forecast(model, dataset, steps=1):
    """The `steps` prices after the dataset's last one, (steps,) float64; each is fed back for the next."""
    prices, T = list(dataset.prices), dataset.seq_length
    for _ in range(steps):
        window = [
            *prices[-T:],
            prices[-1],
        ]  # a window has a target: any price will do, it is not looked at
        prices.append(predict(model, StockDataset(window, T, dataset.normalise, dataset.scale))[0])
    return np.array(prices[len(dataset.prices) :])


# ------------------------------------------------------------------------------------------------------------
# Checkpoints: all that testing, predicting and an exact resume need, in one file


def write_whole(path, data, keep_old=False, trial=False):
    """Write bytes to path whole or not at all: a temporary file beside it, fsync, and a rename; a trial ends
    before the rename. With keep_old, a file that was there becomes path.old."""
    path = os.path.realpath(path)  # a link stays a link
    if os.path.exists(path) and not os.path.isfile(path):
        raise ValueError(f"{path} cannot be written: it is a folder or a device")
    temporary = Path(f"{path}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if keep_old and not trial and os.path.exists(path):
            os.replace(path, f"{path}.old")
        if not trial:
            os.replace(temporary, path)
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error.strerror}") from None
    finally:
        temporary.unlink(missing_ok=True)


def save_checkpoint(path, state, about, keep_old=False, trial=False):
    """Save a state of training, and a dict with the settings of its run and what tells its prices apart."""
    torch.save({"state": state, **about}, file := io.BytesIO())
    write_whole(path, file.getvalue(), keep_old, trial)


def load_checkpoint(path):
    """A model with the best weights, and the state of training, the settings and what tells the prices apart.
    Nothing in the file is executed; ValueError for a file that is damaged or of another kind."""
    data = Path(path).read_bytes()
    try:
        if damaged := zipfile.ZipFile(
            io.BytesIO(data)
        ).testzip():  # torch.load does not check the CRCs
            raise ValueError(f"{damaged} is damaged")
        saved = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        about = argparse.Namespace(**{name: saved[name] for name in ("scale", "seen", "checksum")})
        about.state = {name: saved["state"][name] for name in STATE}
        about.settings = {name: saved["settings"][name] for name in SETTINGS}
        model = RNN(about.settings["hidden_size"], about.settings["num_layers"])
        for name in ("model", "best"):  # names and shapes of both must be those of the model
            model.load_state_dict(about.state[name])
        torch.optim.AdamW(model.parameters()).load_state_dict(
            copy.deepcopy(about.state["optimizer"])
        )
    except (
        Exception
    ) as error:  # zipfile and torch have no list of what damaged bytes make them raise
        raise ValueError(
            f"{path} is damaged, or no checkpoint of stock_rnn.py: {error!r:.60}"
        ) from None
    return model, about


# ------------------------------------------------------------------------------------------------------------
# Command line

DATA = str(Path(__file__).with_name("data") / "btcusd_20h.csv")
FROM_TORCH = (RuntimeError, AssertionError, TypeError)  # say, for a device or a size that cannot be
STATE = ("model", "optimizer", "history", "best", "random")
SETTINGS = (
    "column",
    "every",
    "normalise",
    "hidden_size",
    "num_layers",
    "seq_length",
    "batch_size",
    "seed",
)
SETTINGS += ("learning_rate", "weight_decay", "val_fraction", "test_fraction", "epochs")


def train_command(args, model, about):
    """Train on a file of prices, saving a checkpoint after every epoch, and test on the last part of it."""
    files = [
        args.prices,
        args.checkpoint,
        f"{args.checkpoint}.old",
        *filter(None, (args.log, args.plot)),
    ]
    if len(set(map(os.path.realpath, files))) < len(files):
        raise ValueError(f"each of these must be a file of its own: {', '.join(files)}")
    prices = load_prices(args.prices, args.column, args.every)
    parts = split(prices, args.seq_length, args.val_fraction, args.test_fraction, args.normalise)
    seen = len(prices) - len(parts[2])
    rest = {"scale": parts[0].scale, "seen": seen, "checksum": zlib.crc32(prices[:seen].tobytes())}
    if about and rest != {name: getattr(about, name) for name in rest}:
        raise ValueError(
            f"{args.checkpoint} was trained on other prices than those of {args.prices}"
        )
    rest["settings"] = {name: getattr(args, name) for name in SETTINGS}
    torch.manual_seed(args.seed)
    model = RNN(args.hidden_size, args.num_layers).to(args.device)
    new = {"model": model.state_dict(), "history": {"train_loss": [], "val_loss": []}}
    state = about.state if about else new
    naive = [evaluate(Naive(), batches(part, 1024))[0] or math.nan for part in parts]
    done = len(state["history"]["val_loss"])
    finished = about and done >= args.epochs
    fresh, old = not about, not about and os.path.exists(args.checkpoint)

    def save(state, trial=False):
        nonlocal fresh
        save_checkpoint(args.checkpoint, state, rest, keep_old=fresh, trial=trial)
        rows = list(zip(itertools.count(1), *state["history"].values()))
        if args.log:
            log = "\n".join(
                ["epoch,train_loss,val_loss", *(",".join(map(str, row)) for row in rows), ""]
            )
            write_whole(args.log, log.encode(), trial=trial)
        fresh = fresh and trial
        return rows

    def report(state):
        epoch, train_loss, val_loss = save(state)[-1]
        if epoch == args.epochs or epoch % math.ceil(args.epochs / 12) == 0:  # about a dozen rows
            print(
                f"{epoch:>8}{train_loss:>16.6f}{val_loss:>18.6f}{val_loss / naive[1]:>15.4f}",
                flush=True,
            )

    save(state, trial=not finished)  # what cannot be written shows now, and not after training
    if args.plot:
        write_whole(
            args.plot, picture_of(model, parts[2], state["history"], naive, args.plot), trial=True
        )
    sizes = "{:,} to train on, {:,} to validate, {:,} to test".format(*map(len, parts))
    print(f"{Path(args.prices).name}, {len(prices):,} values of {args.column}; {sizes}\n")
    header = f"{'epoch':>8}{'training loss':>16}{'validation loss':>18}{'of the naive':>15}"
    print(f"already at {done} of {args.epochs} epochs" if finished else header, flush=True)
    loaders = batches(parts[0], args.batch_size, shuffle=True), batches(parts[1], 1024)
    options = args.epochs, args.learning_rate, args.weight_decay, report, about and state
    try:
        history = train(model, *loaders, *options)
    except KeyboardInterrupt:
        again = sys.argv if fresh or args.resume else [*sys.argv, "--resume"]
        print(f"\nstopped; to {'start again' if fresh else 'go on'}:  python {shlex.join(again)}")
        raise
    print_test(model, parts[2], f"values never seen, by epoch {np.argmin(history['val_loss']) + 1}")
    print(f"\nlast value {prices[-1]:,.7g}; next: {forecast(model, parts[2])[0]:,.7g}")
    if args.plot:
        write_whole(args.plot, picture_of(model, parts[2], history, naive, args.plot))
    print(
        f"\nsaved in {args.checkpoint}{f'; the one before is {args.checkpoint}.old' if old else ''}"
    )
    more = shlex.join([sys.argv[0], "predict", args.checkpoint, args.prices, "--steps", "5"])
    print(f"for more values:  python {more}")


def print_test(model, test_set, title):
    """Print the figures of a test, the naive forecast's beside them, and what they come to in plain words."""
    figures, naive = test(model, test_set), test(Naive(), test_set)
    u, t = figures["theil_u"], figures["t"]
    digits = max(2, 3 - math.floor(math.log10(naive["rmse"])))
    print(f"\n{f'test on {len(test_set):,} {title}':<42}{'model':>12}{'naive':>12}")
    print(
        f"{'root mean square error':<42}{figures['rmse']:>12,.{digits}f}{naive['rmse']:>12,.{digits}f}"
    )
    print(
        f"{'mean absolute error':<42}{figures['mae']:>12,.{digits}f}{naive['mae']:>12,.{digits}f}"
    )
    print(f"{'Theil U, the ratio of the first':<42}{u:>12.4f}{1:>12.4f}")
    print(f"{'moves with the right sign':<42}{figures['direction']:>12.1%}")
    print(f"{'Diebold-Mariano t':<42}{t:>12.2f}\n")
    if abs(t) > 2:
        word, change = ("Better", "smaller") if t > 0 else ("Worse", "larger")
        print(
            f"{word} than naming the last value: the root mean square error is {abs(1 - u):.1%} {change}."
        )
    else:
        print("No evidence of skill: chance explains the difference from naming the last value.")


def picture_of(model, test_set, history, naive, path):
    """The test part, and the losses as shares of the naive forecast's, as the bytes of a picture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 8), layout="constrained")
    top, bottom = figure.subplots(2, height_ratios=(2, 1))
    top.plot(test_set.prices[test_set.seq_length :], label="true", linewidth=2)
    top.plot(predict(model, test_set), label="predicted")
    top.plot(predict(Naive(), test_set), ":", label="naive: the last value")
    top.set(xlabel="row of the test part", ylabel="value")
    for label, losses, loss in zip(("training", "validation"), history.values(), naive):
        bottom.plot(range(1, len(losses) + 1), np.array(losses) / loss, label=label)
    bottom.axhline(1, color="black", linestyle=":", label="naive")
    bottom.set(xlabel="epoch", ylabel="loss / loss of the naive forecast")
    for axes in (top, bottom):
        axes.legend()
        axes.grid(alpha=0.3)
    figure.savefig(picture := io.BytesIO(), format=Path(path).suffix[1:] or "png")
    return picture.getvalue()


def test_command(args, model, about):
    """Test a checkpoint on all prices of a file that it was not trained on."""
    prices, title = load_prices(args.prices, args.column, args.every), "values"
    if len(prices) > about.seen and zlib.crc32(prices[: about.seen].tobytes()) == about.checksum:
        print(
            f"{args.prices} begins with the {about.seen:,} values of the training: the rest is the test"
        )
        prices, title = prices[about.seen - args.seq_length :], "values never seen"
    print_test(model, StockDataset(prices, args.seq_length, args.normalise, about.scale), title)


def predict_command(args, model, about):
    """Print the prices that a checkpoint expects after the last row of a file, one a line."""
    prices = load_prices(args.prices, args.column, args.every)
    dataset = StockDataset(prices, args.seq_length, args.normalise, about.scale)
    print(f"last value {prices[-1]:,.7g}; next:")
    print(*(f"{price:,.7g}" for price in forecast(model, dataset, args.steps)), sep="\n")


def parse(argv):
    """The arguments of the command line, and the model and the rest of the checkpoint, if it reads one."""
    parser = argparse.ArgumentParser(prog="stock_rnn.py", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(title="commands", required=True)
    formatter = {"formatter_class": argparse.ArgumentDefaultsHelpFormatter}
    train = commands.add_parser(
        "train", help="learn from prices (also without a command)", **formatter
    )
    train.set_defaults(run=train_command)
    train.add_argument("prices", nargs="?", default=DATA, help="CSV file")
    train.add_argument("--column", default="open", help="column of the prices in the file")
    train.add_argument(
        "--every", type=int, default=1, help="take every n-th row, from the oldest on"
    )
    train.add_argument("--normalise", default="window", help="window or range: see StockDataset")
    train.add_argument("--hidden-size", type=int, default=16, help="hidden units")
    train.add_argument("--num-layers", type=int, default=1, help="hidden layers")
    train.add_argument("--seq-length", type=int, default=20, help="prices in a window")
    train.add_argument("--batch-size", type=int, default=32, help="windows in a batch")
    train.add_argument("--learning-rate", type=float, default=3e-4, help="learning rate of AdamW")
    train.add_argument(
        "--weight-decay", type=float, default=0.1, help="pull of the weights to zero"
    )
    train.add_argument("--epochs", type=int, default=60, help="passes over the training part")
    train.add_argument(
        "--val-fraction", type=float, default=0.15, help="share of the prices to validate"
    )
    train.add_argument(
        "--test-fraction", type=float, default=0.15, help="share of the prices to test"
    )
    train.add_argument("--seed", type=int, default=0, help="seed of the random numbers")
    train.add_argument("--device", default="cpu", help="where torch computes: cpu, cuda, mps")
    train.add_argument("--checkpoint", default="stock_rnn.pt", help="file to save in")
    train.add_argument(
        "--resume", action="store_true", help="go on exactly where the checkpoint was saved"
    )
    train.add_argument("--log", metavar="CSV", help="file for the losses, a line for each epoch")
    train.add_argument(
        "--plot", metavar="PNG", help="file for a picture of the test (needs matplotlib)"
    )
    test = commands.add_parser(
        "test", help="measure how well a trained model predicts other prices"
    )
    test.set_defaults(run=test_command)
    predict = commands.add_parser(
        "predict", help="predict the prices after the last row", **formatter
    )
    predict.set_defaults(run=predict_command)
    predict.add_argument("--steps", type=int, default=1, help="prices to predict")
    for command in (test, predict):
        command.add_argument("checkpoint", help="checkpoint of a trained model")
        command.add_argument("prices", help="CSV file")
        command.add_argument("--column", help="column of the prices (default: as in training)")
        command.add_argument(
            "--every", type=int, help="take every n-th row (default: as in training)"
        )
    if not argv or argv[0] not in (*commands.choices, "-h", "--help"):
        if argv and not argv[0].startswith("-") and not os.path.exists(argv[0]):
            parser.error(
                f"{argv[0]} is neither a command ({', '.join(commands.choices)}) nor a file"
            )
        argv = ["train", *argv]
    args = parser.parse_args(argv)
    if args.run is train_command and not args.resume:
        return args, None, None
    model, about = load_checkpoint(args.checkpoint)
    commands.choices[argv[0]].set_defaults(
        **about.settings
    )  # argparse ignores those of the parent parser
    args = parser.parse_args(argv)
    for name, value in about.settings.items():
        if args.run is train_command and name != "epochs" and getattr(args, name) != value:
            raise ValueError(
                f"{args.checkpoint} was trained with {name} {value}, not {getattr(args, name)}"
            )
    return args, model, about


def main(argv=None):
    """Run the command line; returns the exit status: 2 for a mistake, told in one line, 130 for Ctrl-C."""
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # be quiet when "| head" has seen enough
    try:
        args, model, about = parse(sys.argv[1:] if argv is None else argv)
        return args.run(args, model, about) or 0
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError, MemoryError, ImportError, csv.Error, *FROM_TORCH) as error:
        print(
            f"stock_rnn.py: error: {(str(error) or 'out of memory').splitlines()[0]}",
            file=sys.stderr,
        )
        return 2


if __name__ == "__main__":
    sys.exit(main())
