# SPDX-License-Identifier: MIT-0
"""What stock_rnn.py promises, each test one claim:  python -m unittest test_stock_rnn"""

import contextlib
import io
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import unittest
from importlib.util import find_spec
from pathlib import Path

os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # as the script does, which is imported after NumPy here

import numpy as np

if find_spec("torch"):
    import torch
    from torch.utils.data import DataLoader, Subset, TensorDataset, random_split

    import stock_rnn
    from stock_rnn import (
        RNN,
        StockDataset,
        batches,
        evaluate,
        forecast,
        load_checkpoint,
        load_prices,
        split,
    )

HERE = Path(__file__).resolve().parent
SCRIPT, BITCOIN = str(HERE / "stock_rnn.py"), str(HERE / "data" / "btcusd_20h.csv")
CO2 = str(HERE / "data" / "co2_monthly.csv")
SMALL = ["--hidden-size=4", "--seq-length=5", "--epochs=3"]  # a model that trains in a blink
KLINE = ",7.5,8,6,7,1,1577840399999,1,1,1,1,0\n"  # what follows the time at Binance
BAD = "0", "-1", "inf", "1_000", "12abc"
COIN = '"2025-10-20T00:00:00.000Z";"2025-10-20T23:59:59.999Z";"";"";5;"2025-10-20T23:59:59.999Z"\n'
COINS = (
    "timeOpen;timeClose;timeHigh;timeLow;open;x\n"
    + COIN
    + COIN.replace("-20", "-19").replace(";5", ";4")
)

# What sites and programs write: name, text, the prices or what a refusal says, and the column if not open.
LAYOUTS = [
    (
        "Yahoo",
        "Date,Open,Close\n2019-01-01,5.1,1\n2019-01-02,null,null\n2019-01-03,5.2,1\n",
        [5.1, 5.2],
    ),
    (
        "yfinance",
        "Price,Low,Open\nTicker,0700.HK,0700.HK\nDate,,\n2023-11-06,1,2\n2023-11-07,1,3\n",
        [2, 3],
    ),
    (
        "investing",
        '\ufeff"Date","Open"\n"01/15/2024","1,403.13"\n"01/12/2024","9.5"\n',
        [9.5, 1403.13],
    ),
    (
        "nasdaq.com",
        "Date,Close,Open\n01/15/2024,$1,$1403.13\n01/12/2024,$2,$1402.5\n",
        [1402.5, 1403.13],
    ),
    (
        "CryptoDataDownload",
        "https://c\nunix,open\n1586998800000,3\n1586998800,3.01\n1586995200,2\n",
        [2, 3],
    ),
    ("Bitstamp", "Timestamp,Open\n1325317920,4.39\n1325317980,NaN\n1325318040,4.5\n", [4.39, 4.5]),
    (
        "coingecko",
        "snapped_at,open\n2023-11-07 00:00:00 UTC,6\n2023-11-06 00:00:00 UTC,5\n",
        [5, 6],
    ),
    ("Binance, ms", f"1577840400000{KLINE}1577836800000{KLINE.replace('7.5', '7.4')}", [7.4, 7.5]),
    (
        "Binance, us",
        f"1735693200000000{KLINE}1735689600000000{KLINE}1577836800000{KLINE}",
        [7.5] * 3,
    ),
    (
        "FRED",
        "observation_date,DGS10\n2021-05-28,1.5\n2021-05-31,\n2021-06-01,1.6\n",
        [1.5, 1.6],
        "DGS10",
    ),
    (
        "FRED, old",
        "DATE,VALUE\n2013-02-05,2.04\n2013-02-06,.\n2013-02-07,1.99\n",
        [2.04, 1.99],
        "VALUE",
    ),
    (
        "stooq",
        "Data,Otwarcie\n2012-01-03,2203.07\n2012-01-02,2150.6\n",
        [2150.6, 2203.07],
        "otwarcie",
    ),
    (
        "stooq, txt",
        "<PER>,<DATE>,<TIME>,<OPEN>\n5,20140613,100000,3.7\n5,20140613,095500,4.7\n",
        [4.7, 3.7],
    ),
    (
        "MetaTrader 4",
        "DATE,TIME,OPEN\n2006.10.02,01:00,1.26\n2006.10.02,00:00,1.27\n",
        [1.27, 1.26],
    ),
    ("MetaTrader 4, bare", "2006.10.02,00:00,1.268,1.275\n2006.10.03,00:00,1.273,1.276\n", "name"),
    (
        "MetaTrader 5",
        "<DATE>\t<TIME>\t<OPEN>\n2024.01.02\t01:00:00\t4\n2024.01.02\t00:00:00\t5\n",
        [5, 4],
    ),
    (
        "Finam",
        "<PER>;<DATE>;<TIME>;<OPEN>\n1;31/12/17;10:01;58.0\n1;01/01/18;10:00;59.5\n",
        [58, 59.5],
    ),
    ("HistData", "20120201 000000;1.3066;1.31\n20120201 000100;1.3065;1.31\n", "name"),
    (
        "Dukascopy",
        "Gmt time,Open\n13.01.2020 00:00:00.000,1.1\n01.02.2020 00:00:00.000,1.2\n",
        [1.1, 1.2],
    ),
    ("CoinMarketCap", COINS, [4, 5]),
    (
        "ECB",
        "Date,USD,CYP,\n2008-01-02,1,N/A,\n2007-12-31,1,0.5,\n2007-12-28,1,0.6,\n",
        [0.6, 0.5],
        "CYP",
    ),
    ("WSJ", "Date, Open, High\n01/03/22, 3195.36, 1\n12/31/21, 3203.92, 2\n", [3203.92, 3195.36]),
    ("TradingView", "time,open\n345738600,0.12\n345479400,0.13\n", [0.13, 0.12]),
    ("zones", "time,open\n2024-11-03T01:30:00-05:00,6\n2024-11-03T01:30:00-04:00,5\n", [5, 6]),
    (
        "Google",
        "Date,Open\n1/2/2024 16:00:00,6\n1/3/2024 16:00:00,5\n2/1/2024 16:00:00,7\n",
        [6, 5, 7],
    ),
    ("Google, day first", "Date,Open\n24/05/2019 16:00:00,6\n27/05/2019 16:00:00,5\n", [6, 5]),
    ("side by side", "Date,Open,Date,Open\n2024-01-02,1,2024-01-02,2\n", "line 1 .* 2 times"),
    (
        "Euronext",
        '"To 2024"\nLU1\nDate;Open;"No"\n31/12/2024;5.8;3\n30/12/2024;5.9;1\n',
        [5.9, 5.8],
    ),
    ("NSE", '"Date ","OPEN "\n"19-Feb-2020","1,502.00"\n"18-Feb-2020","503.00"\n', [503, 1502]),
    ("Excel, German", "Datum;Kurs\n02.01.2025;1.100,50\n", "line 2.*1.100,50", "Kurs"),
    ("decimal comma", 'date,open\n2020-01-01,"1403,13"\n', "line 2.*1403,13"),
    ("1.403 or 1403", "date;open\n2020-01-01;1,403\n", "line 2.*1,403"),
    ("EIA", 'Contents,"Data 1"\nDate,Open\n"Jan 03, 1986",25.5\n"Jan 02, 1986",26\n', [26, 25.5]),
    (
        "Macrotrends",
        '"Trends"\n\n\n"note, x"\n\ndate,open\n1986-05-29,2.6\n1986-05-30,2.7\n',
        [2.6, 2.7],
    ),
    ("Bloomberg", "SPX,X\n\nDate,Open\n1/2/2020,1.5\n1/3/2020,#N/A N/A\n1/6/2020,2\n", [1.5, 2]),
    ("pandas", ",Open\n2020-01-03,300.35\n2020-01-02,299\n", [299, 300.35]),
    (
        "date and time",
        "Date,Time,Open\n2020-01-02,16:00,5\n2020-01-02,9:30,6\n2020-01-01,17:00,7",
        [7, 6, 5],
    ),
    ("day or month", "date,open\n01/02/2020,5\n03/01/2020,6\n02/03/2020,7\n", "unclear"),
    ("month first", "date,open\n01/20/2020,5\n01/05/2020,6\n02/13/2020,7\n", [6, 5, 7]),
    ("UTF-16", "date,open\n2020-01-01,5\n".encode("utf-16"), "UTF-16"),
    ("a word", "date,open\n2020-01-01,5\n2020-01-02,abc\n", "line 3.*abc"),
    *((bad, f"date,open\n2020-01-01,{bad}\n", f"line 2.*{bad}") for bad in BAD),
    ("no such date", "date,open\n2020-01-01,5\n2020-01-32,6\n2020-02-01,7\n", "line 3.*2020-01-32"),
    ("several symbols", "date,symbol,open\n2020-01-01,A,5\n2020-01-01,B,9\n", "line 3 .*line 2 "),
    ("no such column", "date,name,last,high\n2020-01-01,x,5,6\n", "try --column last or high"),
    ("empty", "", "no column"),
    ("a short last line", "date,open\n2020-01-01,5\n2020-01-02", [5]),
    ("Windows line ends", "date,open\r\n2020-01-01,5\r\n2020-01-02,6\r\n", [5, 6]),
]


def walk(seed=1, steps=200):
    """A random walk, which nobody can predict."""
    return 1000 * np.cumprod(1 + 0.01 * np.random.default_rng(seed).normal(size=steps))


def learn(parts=None, seed=0, model=None, **options):
    """The parts, of a random walk unless given, a small model trained on the first two, and its history."""
    parts = parts or split(walk(), 5)
    torch.manual_seed(seed)
    model = model or RNN(4)
    loaders = batches(parts[0], 32, shuffle=True), batches(parts[1], 1024)
    return (
        parts,
        model,
        stock_rnn.train(model, *loaders, **{"epochs": 5, "learning_rate": 0.01} | options),
    )


def plain(value):
    """What torch.load gives, as lists and numbers that == compares."""
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, list):
        return [plain(part) for part in value]
    return (value.dtype, value.tolist()) if isinstance(value, torch.Tensor) else value


@unittest.skipUnless(find_spec("torch"), "torch is not installed")
class InFolder(unittest.TestCase):
    """A folder for each test, and the command line in this process (main) or in one of its own (start)."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(folder.name)
        self.rng = np.random.default_rng(1)
        self.flags = ["train", self.csv("prices.csv", walk(steps=120)), *SMALL]

    def write(self, name, content):
        Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return name

    def csv(self, name, prices):
        return self.write(name, "open\n" + "".join(f"{price}\n" for price in prices))

    def files(self):
        return {str(path): hash(path.read_bytes()) for path in Path().iterdir() if path.is_file()}

    def main(self, *args):
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                status = stock_rnn.main(args)
            except SystemExit as end:
                status = end.code
        return status, out.getvalue(), err.getvalue()

    def start(self, *args, row=None, script=SCRIPT):
        """A real process under way that has printed a row, if one is named by its first word."""
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        process = subprocess.Popen([sys.executable, script, *args], **pipes)
        self.addCleanup(process.communicate)
        self.addCleanup(process.kill)
        if row:
            next(line for line in process.stdout if line.split()[:1] == [row])
        return process

    def succeed(self, *args):
        status, out, err = self.main(*args)
        self.assertEqual((status, err), (0, ""))
        return out

    def train(self, *args):
        return self.succeed(*self.flags, *args)

    def contents(self, path):
        return plain(torch.load(path, weights_only=True))  # nothing in it is run

    def refuse(self, *args, saying):
        """The command ends with status 2, in a line with `saying` in it, and no file is changed."""
        before = self.files()
        status, out, err = self.main(*args)
        self.assertEqual((status, self.files()), (2, before), (args, err))
        self.assertRegex(err, r"\A(usage: .*\n( .*\n)*)?stock_rnn.py( \w+)?: error: .*\n\Z", args)
        self.assertIn(saying, err.splitlines()[-1], args)
        return out


class TestData(InFolder):
    def load(self, text, *args, **options):
        """The prices in a text, and what is told about them."""
        err = io.StringIO()
        with contextlib.redirect_stderr(err):
            prices = load_prices(self.write("my.csv", text), *args, **options)
        return prices.tolist(), err.getvalue()

    def test_items_are_the_prices_from_the_index_on_by_the_formula_and_back_at_any_level(self):
        prices, changes = walk(), np.diff(walk()) / walk()[:-1]
        low, high = prices.min(), prices.max()
        for normalise in ("window", "range"):
            data, thousandfold = (StockDataset(p, 5, normalise) for p in (prices, 1000 * prices))
            items = list(zip(*(data[i] for i in range(195))))
            self.assertEqual(len(data), 195)
            for i, (x, target) in enumerate(zip(*items)):
                centre, unit = (low + high) / 2, (high - low) / 2
                if normalise == "window":
                    centre, unit = prices[i + 4], changes.std() * prices[i + 4]
                self.assertEqual((x.shape, target.shape, x.dtype), ((5, 1), (1,), torch.float32))
                expected = (prices[i : i + 6] - centre) / unit
                np.testing.assert_allclose([*x[:, 0], *target], expected, atol=1e-6)
                back = data.to_price(expected, prices[i + 4])
                np.testing.assert_allclose(back, prices[i : i + 6], rtol=1e-9)
            for index in ([3, 1, 190], slice(2, 9), torch.tensor([0, 4]), slice(None)):
                for part, larger, item in zip(data[index], thousandfold[index], items):
                    self.assertTrue(torch.equal(part, torch.stack(item)[index]))
                    np.testing.assert_allclose(larger, part, atol=1e-6)

    def test_every_price_after_the_first_window_is_a_target_once_or_the_split_is_refused(self):
        for size in range(60, 140, 7):
            prices = np.arange(1.0, size + 1) ** 2
            parts = split(prices, 20, 0.1, 0.3)
            self.assertEqual([len(part) for part in parts[1:]], [int(size * 0.1), int(size * 0.3)])
            targets = np.concatenate([part.prices[20:] for part in parts])
            self.assertEqual(targets.tolist(), prices[20:].tolist())
            self.assertEqual(
                [part.scale for part in parts], [StockDataset(parts[0].prices, 20).scale] * 3
            )
            for sizes in (
                (size, 0.1, 0.3),
                (20, 0, 0.3),
                (20, 0.1, 0),
                (20, 0.5, 0.5),
                (20, -0.1, 0.3),
            ):
                with self.assertRaises(ValueError):
                    split(prices, *sizes)

    def test_other_prices_in_the_test_part_change_nothing_in_training(self):
        known, ends = walk()[:170], (walk()[170:], walk(2)[:30])
        for normalise in ("window", "range"):
            parts = [split(np.append(known, end), 5, normalise=normalise) for end in ends]
            runs = [(history, plain(model.state_dict())) for _, model, history in map(learn, parts)]
            self.assertEqual(*runs)

    def test_sizes_and_prices_that_cannot_be_are_refused(self):
        good, nan, inf = [1, 2, 4, 3], math.nan, math.inf
        bad = [
            (p, 1, way)
            for way in ("window", "range")
            for p in ([1, nan, 3], [1, inf, 3], [5] * 4, [])
        ]
        bad += [(prices, 1) for prices in ([1, 2, 4, 8], [1, 0, 3], [1, -3, 4])]
        for args in [
            *bad,
            (good, 4),
            (good, 0),
            (good, -1),
            (good, 2, "minmax"),
            ([good, good], 1),
        ]:
            with self.subTest(args), self.assertRaises(ValueError):
                StockDataset(*args)

    def test_files_of_the_sites_and_programs_that_write_prices_are_read_or_refused(self):
        for name, text, expected, *column in LAYOUTS:
            with self.subTest(name):
                if isinstance(expected, list):
                    self.assertEqual(self.load(text, *column)[0], expected)
                else:
                    with self.assertRaisesRegex(ValueError, expected):
                        self.load(text, *column)

    def test_what_is_skipped_sorted_and_dropped_is_told_with_a_count_and_the_first_line(self):
        rows = "2020-01-03,5 2020-01-01,6 2020-01-02,null 2020-01-01,6.01 2020-01-05,. 2020-01-04,7"
        prices, told = self.load("date,open\n" + rows.replace(" ", "\n"))
        self.assertEqual(prices, [6, 5, 7])
        lines = r"\A.* 2 .*skip.*line 4\b.*\n.* 1 .*sort.*line 3\b.*\n.* 1 .*drop.*line 5\b.*\n\Z"
        self.assertRegex(told, lines)
        self.assertEqual(self.load("open\n5\n6\n6\n"), ([5, 6, 6], ""))

    def test_every_nth_row_counts_from_the_oldest(self):
        self.assertEqual(
            self.load("date,open\n2020-05-04,4\n2020-05-03,3\n2020-05-02,2", every=3)[0], [2]
        )

    @unittest.skipUnless(hasattr(os, "mkfifo"), "needs named pipes")
    def test_a_pipe_is_read_to_its_last_row(self):
        os.mkfifo("pipe.csv")
        writer = threading.Thread(target=self.csv, args=("pipe.csv", range(1, 30_001)))
        writer.start()
        self.assertEqual(load_prices("pipe.csv").tolist(), list(range(1, 30_001)))
        writer.join()


class TestModel(InFolder):
    def test_forward_is_the_recurrence_written_out_for_one_layer_and_two(self):
        for layers in (1, 2):
            model, x = RNN(3, layers).double(), torch.randn(4, 6, 1).double()
            torch.nn.init.normal_(model.linear.weight)
            w = {name: value.detach().numpy() for name, value in model.named_parameters()}
            for window, output in zip(x.numpy(), model(x)):
                for layer in range(layers):
                    wax, waa = w[f"rnn.weight_ih_l{layer}"], w[f"rnn.weight_hh_l{layer}"]
                    ba, a = w[f"rnn.bias_ih_l{layer}"] + w[f"rnn.bias_hh_l{layer}"], np.zeros(3)
                    window = [a := np.tanh(waa @ a + wax @ x_t + ba) for x_t in window]
                y = w["linear.weight"] @ a + w["linear.bias"]
                np.testing.assert_allclose(output.detach(), y, atol=1e-12)

    def test_an_untrained_model_is_the_naive_forecast(self):
        data = StockDataset(walk(), 5)
        for model in (RNN(8), RNN(8, 2), stock_rnn.Naive()):
            figures = stock_rnn.test(model, data)
            self.assertEqual((figures["theil_u"], figures["t"]), (1, 0))
            np.testing.assert_array_equal(stock_rnn.predict(model, data), data.prices[4:-1])

    def test_a_sine_without_noise_is_predicted_also_by_two_layers(self):
        parts = split(50 + np.sin(np.arange(400) / 4), 10)
        for layers in (1, 2):
            _, model, _ = learn(parts, model=RNN(8, layers), epochs=40)
            self.assertLess(stock_rnn.test(model, parts[2])["theil_u"], 0.1)

    def test_figures_are_those_of_their_definitions(self):
        data, model = StockDataset(walk().round(-1), 5), RNN(4)
        torch.nn.init.normal_(model.linear.weight)
        (x, target), last, true = data[:], data.prices[4:-1], data.prices[5:]
        output = model(x).detach()
        error = last + data.scale * last * output[:, 0].double().numpy() - true
        naive, moved = last - true, true != last
        d = naive**2 - error**2
        expected = {
            "loss": ((output - target) ** 2).mean(),
            "rmse": np.mean(error**2) ** 0.5,
            "mae": abs(error).mean(),
            "naive_rmse": np.mean(naive**2) ** 0.5,
            "theil_u": (np.sum(error**2) / np.sum(naive**2)) ** 0.5,
            "t": d.mean() / (d.std() / 195**0.5),
            "direction": np.mean(((error > naive) == (true > last))[moved]),
        }
        figures = stock_rnn.test(model, data)
        for name in figures.keys() | expected.keys():
            self.assertAlmostEqual(figures[name] / expected[name], 1, places=5, msg=name)

    def test_a_forecast_feeds_each_prediction_back(self):
        for normalise in ("window", "range"):
            data, model = StockDataset(walk(), 5, normalise), RNN(4)
            torch.nn.init.normal_(model.linear.weight)
            prices = data.prices.tolist()
            for _ in range(3):
                more = StockDataset([*prices, 1], 5, normalise, data.scale)  # no window has the 1
                prices.append(stock_rnn.predict(model, more)[-1])
            np.testing.assert_allclose(forecast(model, data, 3), prices[-3:], rtol=1e-7)

    def test_train_takes_a_loader_over_any_dataset_of_pairs(self):
        train_set, val_set, _ = split(walk(), 5)
        subsets = Subset(train_set, range(50)), random_split(train_set, [0.5, 0.5])[0]
        histories = []
        for data in (train_set, TensorDataset(*train_set[:]), *subsets):
            torch.manual_seed(0)
            loaders = DataLoader(data, 16, shuffle=True), DataLoader(val_set, 7)
            histories.append(stock_rnn.train(RNN(4), *loaders, epochs=2))
        self.assertEqual(histories[0], histories[1])
        self.assertNotEqual(histories[1], histories[2])

    def test_a_network_of_ones_own_has_its_dropout_on_in_training_alone_and_answers_one_column(
        self,
    ):
        class Own(torch.nn.LSTM):
            modes = []

            def forward(self, x):
                self.modes.append(self.training)
                return torch.dropout(super().forward(x)[0][:, -1], 0.5, self.training)

        parts, model, _ = learn(model=Own(1, 1, batch_first=True))
        self.assertEqual(model.modes, ([True] * 5 + [False]) * 5)
        model.train()
        self.assertEqual(stock_rnn.test(model, parts[2]), stock_rnn.test(model, parts[2]))
        with self.assertRaisesRegex(ValueError, r"\(32,\).*\(32, 1\)"):
            learn(model=torch.nn.Sequential(model, torch.nn.Flatten(0)))

    def test_the_model_ends_with_the_weights_of_its_best_epoch_unless_the_loss_is_not_finite(self):
        parts, model, history = learn(epochs=20)
        best = min(history["val_loss"])
        self.assertTrue(
            evaluate(model, batches(parts[1], 1024))[0] == best < history["val_loss"][-1]
        )
        with self.assertRaisesRegex(ValueError, "finite"):
            learn(learning_rate=1e30)

    def test_a_seed_or_a_state_repeats_a_run_exactly_whatever_the_report_draws(self):
        states = []
        runs = [learn(report=lambda state: states.append(state) or torch.rand(3))]
        runs += [learn(), learn(seed=1)]
        runs += [learn(seed=seed, state=states[1]) for seed in (5, 6)]  # the state stays whole
        first, same, other, *more = (
            (history, plain(model.state_dict())) for _, model, history in runs
        )
        self.assertEqual([same, *more], [first] * 3)
        self.assertNotEqual(other[0], first[0])

    def test_what_can_be_predicted_is_praised_and_a_random_walk_is_not(self):
        for seed in (1, 2, 3):
            self.assertNotIn(
                "Better", self.succeed(self.csv("walk.csv", walk(seed, 800)), "--epochs=20")
            )
        out = self.succeed(CO2, "--column=ppm", "--learning-rate=1e-3")
        self.assertIn("Better", out)
        self.assertLess(float(re.search(r"Theil U.* (0\.\d+) ", out)[1]), 0.32)
        self.assertGreater(float(re.search(r"Mariano t +(\S+)", out)[1]), 5)


@unittest.skipUnless(os.name == "posix", "needs a POSIX system")
class TestSystem(InFolder):
    def test_a_run_killed_stopped_or_cut_by_head_ends_with_the_same_bits_by_the_printed_command(
        self,
    ):
        out = self.train("--epochs=120", "--checkpoint=straight.pt")
        self.assertTrue(8 < len(re.findall(r"\n +\d+(?= +\d\.\d+ +\d\.\d+ )", out)) <= 13)
        flags = [*self.flags, "--epochs=120", "--log=a log.csv"]
        for row, end in (("10", signal.SIGPIPE), ("40", signal.SIGKILL), ("70", signal.SIGINT)):
            process = self.start(*flags, row=row)
            if end == signal.SIGPIPE:
                process.stdout.close()  # all that "| head" does when it has seen enough
                flags += ["--resume"]
            else:
                process.send_signal(end)
                out = process.stdout.read()
            self.assertEqual(process.stderr.read(), "")
            self.assertEqual(process.wait(), 130 if end == signal.SIGINT else -end)
        _python, _script, *command = shlex.split(re.search("stopped; .*:  (.*)", out)[1])
        self.succeed(*command)
        self.assertEqual(self.contents("straight.pt"), self.contents("stock_rnn.pt"))

    def test_what_was_trained_before_outlives_a_stopped_run_and_becomes_old_at_the_next_save(self):
        self.train("--log=log.csv")
        before = self.files()
        process = self.start(
            BITCOIN, "--hidden-size=512", "--batch-size=1", row="epoch"
        )  # and a long one
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
        self.assertEqual((process.returncode, err, self.files()), (130, "", before))
        self.assertNotIn("--resume", out)
        self.assertIn("stock_rnn.pt.old", self.train("--seed=1"))
        self.assertEqual(self.files()["stock_rnn.pt.old"], before["stock_rnn.pt"])

    def test_a_full_disk_or_a_read_only_folder_is_told_before_training_and_costs_nothing(self):
        import resource

        self.train()
        user, limit = os.geteuid(), resource.getrlimit(resource.RLIMIT_FSIZE)
        full = (1000, limit[1]), 0o755, user
        read_only = limit, 0o555, user or 65534  # root may write anywhere
        for size, mode, other in (full, read_only):
            for args in ([], ["--resume", "--epochs=9"]):
                resource.setrlimit(resource.RLIMIT_FSIZE, size)
                os.chmod(".", mode)
                os.seteuid(other)
                try:
                    self.assertNotIn(
                        "epoch", self.refuse(*self.flags, *args, saying="pt cannot be written")
                    )
                finally:
                    os.seteuid(user)
                    os.chmod(".", 0o755)
                    resource.setrlimit(resource.RLIMIT_FSIZE, limit)


class TestCommandLine(InFolder):
    def test_train_test_and_predict_work_on_the_data_that_comes_along(self):
        plot = ["--plot=a.png"] * bool(find_spec("matplotlib"))
        out = self.succeed("--epochs=3", "--log=log.csv", *plot)
        self.assertEqual(
            [Path("a.png").read_bytes()[:8] for _ in plot], [b"\x89PNG\r\n\x1a\n" for _ in plot]
        )
        self.assertRegex(
            out, r"(?s)naive\n +1 .*\n +2 .*\n +3 .*(Better|Worse|No ).*next:.*stock_rnn.pt"
        )
        history = load_checkpoint("stock_rnn.pt")[1].state["history"]
        rows = zip("123", *(map(str, losses) for losses in history.values()))
        log = "\n".join(map(",".join, [("epoch", "train_loss", "val_loss"), *rows])) + "\n"
        self.assertEqual(Path("log.csv").read_text(), log)
        again = self.succeed("test", "stock_rnn.pt", BITCOIN)
        self.assertRegex(again, r"begins with .*\b746\b(?s:.*)131 values never seen")
        self.assertIn(again[again.index("root mean") :], out)
        other = self.succeed("test", "stock_rnn.pt", CO2, "--column=ppm")
        self.assertRegex(other, f"^\ntest on {len(load_prices(CO2, 'ppm')) - 20} values ")
        values = (
            self.succeed("predict", "stock_rnn.pt", BITCOIN, "--steps=3").split("next:")[1].split()
        )
        self.assertEqual((values[0], len(values)), (out.split("next:")[1].split()[0], 3))

    def test_the_script_works_alone_and_without_matplotlib_refuses_a_plot_before_training(self):
        self.write("matplotlib.py", "raise ImportError('no module matplotlib')")
        alone = self.write("alone.py", Path(SCRIPT).read_bytes())
        process, before = self.start(*self.flags, "--plot=a.png", script=alone), self.files()
        out, err = process.communicate()
        self.assertEqual((process.returncode, out, self.files()), (2, "", before))
        self.assertRegex(err, r"\A.*error: .*matplotlib.*\n\Z")

    def test_resume_brings_the_settings_back_and_goes_on_to_more_epochs_only(self):
        self.train("--normalise=range", "--epochs=8", "--checkpoint=straight.pt")
        self.train("--normalise=range", "--epochs=5")
        before, resume = self.contents("stock_rnn.pt"), ["train", "prices.csv", "--resume"]
        self.refuse("train", self.csv("other.csv", walk(2, 120)), "--resume", saying="other prices")
        self.assertIn("already at 5 of 5", self.succeed(*resume))
        self.assertEqual(self.contents("stock_rnn.pt"), before)
        self.succeed(*resume, "--epochs=8")
        self.assertEqual(self.contents("stock_rnn.pt"), self.contents("straight.pt"))

    def test_two_runs_on_one_checkpoint_leave_a_whole_one(self):
        flags = [*self.flags, "--epochs=60"]
        for process in [
            self.start(*flags, "--checkpoint=both.pt", f"--seed={seed}") for seed in (0, 1)
        ]:
            self.assertEqual((process.communicate()[1], process.returncode), ("", 0))
        self.succeed(*flags, f"--seed={load_checkpoint('both.pt')[1].settings['seed']}")
        self.assertEqual(self.contents("both.pt"), self.contents("stock_rnn.pt"))

    def test_a_damaged_checkpoint_is_refused_or_gives_the_very_same_values(self):
        def values(path):
            model, about = load_checkpoint(path)
            return plain(vars(about)), forecast(
                model, StockDataset(prices, 5, scale=about.scale), 2
            ).tolist()

        self.train()
        prices = load_prices("prices.csv")
        whole, same = Path("stock_rnn.pt").read_bytes(), values("stock_rnn.pt")
        damaged = [b"", b"PK" + bytes(1000), self.rng.bytes(5000), whole[:-1]]
        for a, b, bit in self.rng.integers(0, (len(whole), len(whole), 8), (100, 3)):
            moved, flipped = whole[b : b + 40], bytes([whole[a] ^ 1 << bit])
            damaged += [
                whole[:a],
                whole[:a] + moved + whole[a + 40 :],
                whole[:a] + flipped + whole[a + 1 :],
            ]
        refused = 0
        for content in damaged:
            try:
                self.assertEqual(values(self.write("damaged.pt", content)), same)
            except ValueError as error:
                self.assertIn("damaged.pt is damaged", str(error))
                refused += 1
        self.assertGreater(refused, 150)

    def test_forged_checkpoints_are_refused_and_nothing_in_one_is_run(self):
        class Trap:
            def __reduce__(self):
                return (Path.touch, (Path("witness"),))

        self.train()
        whole, weights = torch.load("stock_rnn.pt", weights_only=True), RNN(5).state_dict()
        state, settings = whole["state"], whole["settings"]
        forged = [[], weights, whole | {"settings": settings | {"hidden_size": "x"}}]
        forged += [{key: whole[key] for key in whole.keys() - {name}} for name in whole]
        for name, group in (("state", state), ("settings", settings)):
            forged += [
                whole | {name: {key: group[key] for key in group.keys() - {gone}}} for gone in group
            ]
        forged += [
            whole | {"state": state | {name: weights}} for name in ("model", "best", "optimizer")
        ]
        for content in [*forged, whole | {"state": Trap()}]:
            torch.save(content, "forged.pt")
            for args in (["predict", "forged.pt"], ["train", "--resume", "--checkpoint=forged.pt"]):
                self.refuse(*args, "prices.csv", saying="forged.pt is damaged")
        torch.load("forged.pt", weights_only=False)  # the trap does work where pickles are allowed
        self.assertTrue(Path("witness").exists())

    def test_every_mistake_is_told_in_a_line_and_changes_nothing(self):
        for name, prices in (
            ("short.csv", [1, 2, 3]),
            ("flat.csv", [5] * 120),
            ("bad.csv", [5, "six"]),
        ):
            self.csv(name, prices)
        Path("folder").mkdir()
        self.train()
        for saying, *commands in (
            (
                "none.csv",
                "train none.csv",
                "test stock_rnn.pt none.csv",
                "--resume --checkpoint=none.csv",
            ),
            ("neither", "trian", "prices"),
            ("directory", "train folder", "test folder prices.csv"),
            ("try --column", "--column=close", f"train {CO2}", f"test stock_rnn.pt {CO2}"),
            ("line 3", "train bad.csv"),
            ("too few", "train short.csv", "--test-fraction=0.99", "--val-fraction=0"),
            ("window of 5", "predict stock_rnn.pt short.csv", "test stock_rnn.pt short.csv"),
            ("alike", "train flat.csv"),
            ("normalise", "--normalise=foo", "--resume --normalise=range"),
            ("argument", "--hidden-size=ten", "--hiden-size=3", "test", "predict stock_rnn.pt"),
            ("hidden_size", "--hidden-size=0", "--hidden-size=-1", "--resume --hidden-size=5"),
            (
                "error",
                *(
                    f"--{name}={10**20}"
                    for name in ("hidden-size", "seq-length", "batch-size", "seed")
                ),
            ),
            (
                "error",
                "--num-layers=0",
                "--seq-length=-1",
                "--val-fraction=inf",
                "--val-fraction=nan",
            ),
            ("epochs", "--epochs=0", "--epochs=-1"),
            ("seq_length", "--seq-length=100"),
            ("batch_size", "--batch-size=0"),
            ("learning rate", "--learning-rate=-1", "--learning-rate=nan"),
            ("every", "--every=0"),
            ("device", "--device=nonsense"),
            ("CUDA", *["--device=cuda"] * (not torch.cuda.is_available())),
            ("a file of its own", "--checkpoint=prices.csv", "--log=./prices.csv"),
            (
                "a file of its own",
                "--log=stock_rnn.pt",
                "--plot=stock_rnn.pt.old",
                "--log=a --plot=a",
            ),
            ("a folder or a device", "--log=folder", "--checkpoint=", f"--log={os.devnull}"),
            ("cannot be written", "--checkpoint=nowhere/stock_rnn.pt", "--log=nowhere/log.csv"),
            ("damaged", "test prices.csv prices.csv", "--resume --checkpoint=./short.csv"),
        ):
            for command in commands:
                with self.subTest(command):
                    self.refuse(
                        *self.flags * command.startswith("-"), *command.split(), saying=saying
                    )

    def test_python_snippets_about_stock_rnn_run_as_written(self):
        readme = (HERE / "README.md").read_text(encoding="utf-8")
        snippets = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
        Path("data").symlink_to(HERE / "data")
        self.assertIn("stock_rnn", "".join(snippets))
        for snippet in filter(re.compile("stock_rnn").search, snippets):
            with contextlib.redirect_stdout(io.StringIO()):
                exec(snippet, {})


if __name__ == "__main__":
    unittest.main()
