# SPDX-License-Identifier: MIT-0
"""What stock_rnn.py promises, each test one claim:  python -m unittest test_stock_rnn"""

import contextlib
import copy
import io
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import unittest
from importlib.util import find_spec
from pathlib import Path
from unittest import mock

os.environ.setdefault("OMP_NUM_THREADS", "1")  # as the script does, which comes after NumPy here

import numpy as np

if find_spec("torch"):
    import torch
    from torch.utils.data import DataLoader, Subset, TensorDataset, random_split

    import stock_rnn
    from stock_rnn import (
        RNN,
        Mistake,
        Naive,
        StockDataset,
        WeightedSum,
        batches,
        diebold_mariano,
        evaluate,
        forecast,
        load_checkpoint,
        load_prices,
        predict,
        split,
    )

HERE = Path(__file__).resolve().parent
SCRIPT = str(HERE / "stock_rnn.py")
BITCOIN = str(HERE / "data" / "btcusd_20h.csv")
CO2 = str(HERE / "data" / "co2_monthly.csv")
SMALL = ["--hidden-size=4", "--seq-length=5", "--epochs=3"]  # a model that trains in a blink
KLINE = ",7.5,8,6,7,1,1577840399999,1,1,1,1,0\n"  # what follows the time at Binance
BAD = "inf", "12abc"
COIN = '"2025-10-20T00:00:00.000Z";"2025-10-20T23:59:59.999Z";"";"";5;"2025-10-20T23:59:59.999Z"\n'
COINS = "timeOpen;timeClose;timeHigh;timeLow;open;x\n" + COIN
COINS += COIN.replace("-20", "-19").replace(";5", ";4")

# What sites and programs write: name, text, the values or what a refusal says, and the column.
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
        "<PER>;<DATE>;<TIME>;<OPEN>\n1;30/12/17;10:01;5\n1;31/12/17;10:01;6\n1;01/01/18;10:00;7\n",
        [5, 6, 7],
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
    ("side by side", "Date,Open,Date,Open\n2024-01-02,1,2024-01-02,2\n", "twice: see line 1"),
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
    (
        "day or month",
        "date,open\n01/02/2020,5\n03/01/2020,6\n02/03/2020,7\n",
        "in no way, or in two",
    ),
    ("month first", "date,open\n01/20/2020,5\n01/05/2020,6\n02/13/2020,7\n", [6, 5, 7]),
    ("UTF-16", "date,open\n2020-01-01,5\n".encode("utf-16"), "UTF-16"),
    ("a word", "date,open\n2020-01-01,5\n2020-01-02,abc\n", "line 3.*abc"),
    *((bad, f"date,open\n2020-01-01,{bad}\n", f"line 2.*{bad}") for bad in BAD),
    ("zeros and negatives", "date,open\n2020-04-20,-36.98\n2020-04-21,0\n", [-36.98, 0]),
    ("question marks", "Date;Time;open\n16/12/2006;17:24:00;4.2\n16/12/2006;17:25:00;?\n", [4.2]),
    ("year of two digits", "date,open\n20-04-06,5\n20-04-07,6\n20-05-08,7\n", [5, 6, 7]),
    (
        "two digits, shuffled",
        "date,open\n20-04-16,5\n20-04-07,6\n20-05-08,7\n",
        "in no way, or in two",
    ),
    ("Korean", "날짜,종가\n2020- 12- 02,6\n2020- 12- 01,5\n", [5, 6], "종가"),
    ("Chinese", "日期,收盘\n2020年12月2日,6\n2020年12月1日,5\n", [5, 6], "收盘"),
    ("month in words", "date,open\nFeb 1 2000,6\nJan 1 2000,5\nMar 1 2000,7\n", [5, 6, 7]),
    ("more cells than names", ";Year;open\n2000;01;5.1;7\n", "line 2 has more cells"),
    ("commas in doubt", 'date,open,%\n2020-01-01,"10,074","-0,01%"\n', "decimal commas"),
    ("points in doubt", 'date,open,%\n2020-01-01,120.760,"-0,01%"\n', "decimal commas"),
    ("in doubt below 1000", 'date;open;%\n2020-01-01;1.002;"-0,01%"\n2020-01-02;998;\n', "decimal"),
    ("no thousands", 'date,open\n2020-01-01,"0,845"\n', "line 2.*0,845"),
    ("suffixes", "Symbol,Date,open\nAAPL,2020-01-01,1.2K\nAAPL,2020-01-03,950\n", "line 2.*1.2K"),
    ("day and month in a number", "date,open\n31012020,5\n01022020,6\n29012020,7\n", "in no way"),
    ("ms around 1970", "time,open\n-86400000,4\n0,5\n7776000000,6\n1e12,7\n", "in no way"),
    (
        "response time",
        "time,date,open\n7,2020-01-02,6\n9,2020-01-01,5\n8,2020-01-03,7\n",
        [5, 6, 7],
    ),
    (
        "open quote",
        'date,open,x\n2020-01-01,5,"1\n2020-01-02,6,1\n2020-01-03,7,1\n',
        "quote in line 2",
    ),
    ("no doubt", 'date,open,%\n2020-01-01,120.760,"-0,01%"\n2020-01-02,98.5,\n', [120.76, 98.5]),
    ("gzip", b"\x1f\x8b\x08\0", "compressed with gzip"),
    ("Excel", b"PK\x03\x04", "a zip or Excel file"),
    ("GBK", "日期,open\n".encode("gbk"), "no CSV file in UTF-8"),
    ("no header", "2020-01-01,5\n2020-01-02,6\n", "One of the first lines must name"),
    ("rows in quotes", '"date,open"\n"2020-01-01,5"\n', "first is .*date,open"),
    ("another delimiter", "date|open\n2020-01-01|5\n", "divided by commas.*date.open"),
    ("too large", "date,open\n2020-01-01,1e300\n", "line 2.*1e300"),
    ("no times", "open,volume\n6,1\n5,1\n", [6, 5]),
    ("no such date", "date,open\n2020-01-01,5\n2020-01-32,6\n2020-02-01,7\n", "line 3.*2020-01-32"),
    ("several symbols", "date,symbol,open\n2020-01-01,A,5\n2020-01-01,B,9\n", "line 3 .*line 2 "),
    (
        "no such column",
        "date,name,last,high\n2020-01-01,x,5,6\n",
        "name one with --column.*date,name,last,high",
    ),
    ("empty", "", "no column"),
    ("a short last line", "date,open\n2020-01-01,5\n2020-01-02", [5]),
    ("Windows line ends", "date,open\r\n2020-01-01,5\r\n2020-01-02,6\r\n", [5, 6]),
]


def walk(seed=1, steps=200):
    """A random walk, which nobody can predict."""
    return 1000 * np.cumprod(1 + 0.01 * np.random.default_rng(seed).normal(size=steps))


def season(steps=300):
    """A yearly swing with noise, below zero as well."""
    noise = np.random.default_rng(3).normal(size=steps)
    return 8 * np.sin(2 * np.pi * np.arange(steps) / 12) + noise


def learn(parts=None, seed=0, model=None, rate=0.01, **options):
    """The parts, a small model trained on the first two, and its history."""
    parts = parts or split(walk(), 5)
    torch.manual_seed(seed)
    model = model or RNN(4)
    loaders = batches(parts[0], 32, shuffle=True), batches(parts[1], 1024)
    optimizer = torch.optim.AdamW(model.parameters(), rate)
    history = stock_rnn.train(model, *loaders, optimizer=optimizer, **{"epochs": 5} | options)
    return parts, model, history


def random_model():
    """An untrained model that is not the naive forecast."""
    model = RNN(4)
    torch.nn.init.normal_(model.linear.weight)
    return model


def plain(value):
    """What torch.load gives, as lists and numbers that == compares."""
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    return (value.dtype, value.tolist()) if isinstance(value, torch.Tensor) else value


@unittest.skipUnless(find_spec("torch"), "torch is not installed")
class InFolder(unittest.TestCase):
    """A folder for each test, and the command line in this process (main) or its own (start)."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(folder.name)
        self.rng = np.random.default_rng(1)
        self.csv("values.csv", walk(steps=120))
        self.flags = ["train", "values.csv", *SMALL]

    def write(self, name, content):
        Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return name

    def csv(self, name, values):
        return self.write(name, "open\n" + "".join(f"{value}\n" for value in values))

    def files(self):
        return {str(path): path.read_bytes() for path in Path().iterdir() if path.is_file()}

    def main(self, *args):
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                status = stock_rnn.main(args) or 0
            except SystemExit as end:
                status = end.code
        return status, out.getvalue(), err.getvalue()

    def start(self, *args, row=None, script=SCRIPT, **options):
        """A real process under way that has printed a row, if one is named by its first word."""
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "encoding": "utf-8"}
        process = subprocess.Popen([sys.executable, script, *args], **pipes, **options)
        self.addCleanup(process.communicate)
        self.addCleanup(process.kill)
        if row:
            next(line for line in process.stdout if line.split()[:1] == [row])
        return process

    def succeed(self, *args):
        status, out, err = self.main(*args)
        self.assertEqual(status, 0, err)
        return out

    def train(self, *args):
        return self.succeed(*self.flags, *args)

    def contents(self, path):
        saved = plain(torch.load(path, weights_only=True))  # nothing in it is run
        del saved["settings"]["prices"]
        return saved

    def refuse(self, saying, *args):
        """The command ends with status 2 and a last line that says why, and changes no file."""
        before = self.files()
        status, _, err = self.main(*args)
        self.assertEqual((status, self.files()), (2, before), (args, err))
        *_, last = err.splitlines()
        self.assertRegex(last, r"\Astock_rnn.py( \w+)?: error: ", args)
        self.assertIn(saying, last, args)
        self.assertNotIn("Traceback", err)


class TestFiles(InFolder):
    def load(self, text, *column):
        """The values in a text, and what is told about them."""
        err = io.StringIO()
        with contextlib.redirect_stderr(err):
            values = load_prices(self.write("my.csv", text), *column)
        return values.tolist(), err.getvalue()

    def test_files_of_the_sites_and_programs_that_write_prices_are_read_or_refused(self):
        for name, text, expected, *column in LAYOUTS:
            with self.subTest(name):
                if isinstance(expected, list):
                    self.assertEqual(self.load(text, *column)[0], expected)
                else:
                    with self.assertRaisesRegex(Mistake, f"(?s){expected}"):
                        self.load(text, *column)

    def test_where_the_order_comes_from_is_always_told(self):
        told = self.load("open,when\n6,2020-01-02\n5,2020-01-01\n")
        self.assertEqual(told, ([5, 6], "my.csv: sorted by 'when'\n"))
        told = self.load("open,when\n6,Mar-20\n5,Feb-20\n")
        self.assertEqual(told, ([6, 5], "my.csv: no times found: in the order of the file\n"))

    def test_what_is_skipped_and_dropped_is_told_with_a_count_and_the_first_line(self):
        rows = "2020-01-03,5 2020-01-01,6 2020-01-02,null 2020-01-01,6.01 2020-01-05,. 2020-01-04,7"
        values, told = self.load("date,open\n" + rows.replace(" ", "\n"))
        self.assertEqual(values, [6, 5, 7])
        lines = r"\A.*skip.* 2 from line 4 on\n.*sorted by 'date'\n.*dropped.* 1 from line 5 on\n\Z"
        self.assertRegex(told, lines)

    def test_values_that_differ_at_one_time_are_dropped_up_to_1_percent(self):
        rows = [
            f"2020-01-{day:02} {hour:02}:00,{day}" for day in range(1, 29) for hour in range(24)
        ]
        text = "date,open\n" + "\n".join(rows)
        self.assertEqual(len(self.load(f"{text}\n2020-01-01 05:00,9")[0]), len(rows))
        with self.assertRaisesRegex(Mistake, "line 674 has the time of line 7 .*several series"):
            self.load(text + "\n2020-01-01 05:00,9" * 8)

    @unittest.skipUnless(hasattr(os, "mkfifo"), "needs named pipes")
    def test_a_pipe_is_read_to_its_last_row(self):
        os.mkfifo("pipe.csv")
        writer = threading.Thread(target=self.csv, args=("pipe.csv", range(1, 30_001)))
        writer.start()
        with contextlib.redirect_stderr(io.StringIO()):
            self.assertEqual(load_prices("pipe.csv").tolist(), list(range(1, 30_001)))
        writer.join()


class TestData(InFolder):
    def test_items_are_the_values_from_the_index_on_by_the_formulas(self):
        values = walk()
        for normalise in stock_rnn.NORMALISE:
            data = StockDataset(values, 5, normalise)
            items = [data[i] for i in range(195)]
            self.assertEqual(len(data), 195)
            for i, (x, target) in enumerate(items):
                centre = unit = values[i + 4]
                if normalise == "relative":
                    unit = np.std(np.diff(values) / values[:-1]) * centre
                elif normalise == "difference":
                    unit = np.std(np.diff(values))
                else:
                    centre = (values.max() + values.min()) / 2
                    unit = (values.max() - values.min()) / 2
                self.assertEqual((x.shape, target.shape, x.dtype), ((5, 1), (1,), torch.float32))
                expected = (values[i : i + 6] - centre) / unit
                np.testing.assert_allclose([*x[:, 0], *target], expected, atol=1e-6)
            for index in ([3, 1, 190], slice(2, 9), torch.tensor([0, 4]), slice(None)):
                for part, single in zip(data[index], zip(*items)):
                    self.assertTrue(torch.equal(part, torch.stack(single)[index]))

    def test_every_value_after_the_first_window_is_a_target_once_or_the_split_is_refused(self):
        wrong = [(99, 0.1, 0.3), (20, 0, 0.3), (20, 0.1, 0), (20, 0.5, 0.5), (20, -0.1, 0.3)]
        for size in range(60, 99, 7):
            values = np.arange(1.0, size + 1) ** 2
            parts = split(values, 20, 0.1, 0.3)
            self.assertEqual([len(part) for part in parts[1:]], [int(size * 0.1), int(size * 0.3)])
            targets = np.concatenate([part.values[20:] for part in parts])
            self.assertEqual(targets.tolist(), values[20:].tolist())
            scale = StockDataset(parts[0].values, 20).scale
            self.assertEqual([part.scale for part in parts], [scale] * 3)
            for sizes in wrong:
                with self.assertRaises(Mistake):
                    split(values, *sizes)

    def test_values_of_any_sign_choose_the_difference_by_the_training_part_alone(self):
        values = walk()
        self.assertEqual(split(values, 5)[0].normalise, "relative")
        self.assertEqual(split(values - 2000, 5)[0].normalise, "difference")
        values[-1] = -3
        with self.assertRaisesRegex(Mistake, "-3 is not above zero: train with --normalise diff"):
            split(values, 5)
        self.assertEqual(split(values, 5, normalise="difference")[2].values[-1], -3)

    def test_no_leak_of_test_values_into_training_nor_of_validation_values_into_its_history(self):
        known = walk()
        other_test = np.append(known[:170], walk(2)[:30])
        other_val = np.concatenate([known[:140], walk(2)[:30], known[170:]])
        for normalise in stock_rnn.NORMALISE:
            runs = []
            for values in (known, other_test, other_val):
                _, model, history = learn(split(values, 5, normalise=normalise))
                runs.append((history, plain(model.state_dict())))
            self.assertEqual(runs[0], runs[1])
            self.assertEqual(runs[0][0]["train_loss"], runs[2][0]["train_loss"])
            self.assertNotEqual(runs[0][0]["val_loss"], runs[2][0]["val_loss"])

    def test_sizes_and_values_that_cannot_be_are_refused(self):
        good = [1, 2, 4, 3]
        for args in (
            *(([1, bad, 3], 1, way) for bad in (math.nan, math.inf) for way in stock_rnn.NORMALISE),
            *(([5] * 4, 1, way) for way in stock_rnn.NORMALISE),
            *((values, 1) for values in ([1, 2, 4, 8], [1, 0, 3], [1, -3, 4], [], [good, good])),
            *((good, size) for size in (4, 5)),
            (good, 2, "minmax"),
        ):
            with self.subTest(args), self.assertRaises(Mistake):
                StockDataset(*args)


class TestModel(InFolder):
    def test_forward_is_the_recurrence_written_out(self):
        model = random_model().double()
        x = torch.randn(4, 6, 1).double()
        w = {name: value.detach().numpy() for name, value in model.named_parameters()}
        ba = w["rnn.bias_ih_l0"] + w["rnn.bias_hh_l0"]
        for window, output in zip(x.numpy(), model(x)):
            a = np.zeros(4)
            for x_t in window:
                a = np.tanh(w["rnn.weight_hh_l0"] @ a + w["rnn.weight_ih_l0"] @ x_t + ba)
            y = w["linear.weight"] @ a + w["linear.bias"]
            np.testing.assert_allclose(output.detach(), y, atol=1e-12)

    def test_an_untrained_model_is_the_naive_forecast(self):
        for values, normalise in ((walk(), "relative"), (season(), "difference")):
            data = StockDataset(values, 5, normalise)
            for model in (RNN(8), RNN(8, "gru"), RNN(8, "lstm"), Naive()):
                figures = stock_rnn.test(model, data)
                self.assertEqual((figures["theil_u"], figures["t"]), (1, 0))
                np.testing.assert_array_equal(predict(model, data), data.values[4:-1])

    def test_the_simple_forecasts_are_the_last_value_its_drift_and_least_squares(self):
        for normalise in stock_rnn.NORMALISE:
            data = StockDataset(walk(), 5, normalise)
            weights = stock_rnn.simple_forecasts(data)
            x, target = (part.double().numpy() for part in data[:])
            output = WeightedSum(weights["drift"])(data[:][0]).numpy()
            np.testing.assert_allclose(output, x[:, -1] + np.mean(target - x[:, -1]), atol=1e-6)
            inputs = np.column_stack([x[..., 0], np.ones(len(x))])
            error = WeightedSum(weights["linear"])(data[:][0]).numpy() - target
            np.testing.assert_allclose(inputs.T @ error, 0, atol=1e-3)  # as least squares demand
            naive = evaluate(Naive(), batches(data, 1024))[0]
            self.assertLess(np.mean(error**2), naive)

    def test_what_can_be_learned_is_learned_by_every_cell(self):
        parts = split(50 + np.sin(np.arange(400) / 4), 10)
        for cell in stock_rnn.CELLS:
            _, model, _ = learn(parts, model=RNN(8, cell), epochs=40)
            self.assertLess(stock_rnn.test(model, parts[2])["theil_u"], 0.1, cell)

    def test_figures_are_those_of_their_definitions(self):
        data = StockDataset(walk().round(-1), 5)
        model = random_model()
        x, target = data[:]
        last = data.values[4:-1]
        true = data.values[5:]
        output = model(x).detach()
        error = last + data.scale * last * output[:, 0].double().numpy() - true
        naive = last - true
        moved = true != last
        d = naive**2 - error**2
        expected = {
            "loss": ((output - target) ** 2).mean(),
            "rmse": np.mean(error**2) ** 0.5,
            "mae": abs(error).mean(),
            "naive_rmse": np.mean(naive**2) ** 0.5,
            "theil_u": (np.sum(error**2) / np.sum(naive**2)) ** 0.5,
            "t": d.mean() / (d.std(ddof=1) / 195**0.5),
            "direction": np.mean(((error > naive) == (true > last))[moved]),
        }
        figures = stock_rnn.test(model, data)
        self.assertEqual(figures.keys(), expected.keys())
        for name, value in expected.items():
            self.assertAlmostEqual(figures[name] / value, 1, places=5, msg=name)
        self.assertEqual(diebold_mariano(Naive(), model, data), -figures["t"])

    def test_a_forecast_feeds_each_prediction_back_after_every_window(self):
        for normalise in stock_rnn.NORMALISE:
            data = StockDataset(walk(), 5, normalise)
            model = random_model()
            found = forecast(model, data, 3)
            self.assertEqual(found.shape, (196, 3))
            for end in (5, 77, 200):
                values = data.values[:end].tolist()
                for _ in range(3):
                    values.append(
                        predict(model, data.like([*values, 1]))[-1]
                    )  # no window has the 1
                np.testing.assert_allclose(found[end - 5], values[-3:], rtol=1e-6)
            np.testing.assert_allclose(forecast(model, data.like(data.values[-5:]), 3), found[-1:])

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

    def test_train_takes_a_loss_and_an_optimiser_whose_rate_falls_by_half_a_cosine(self):
        rates = []
        optimizer = mock.Mock(wraps=torch.optim.SGD)
        parts = split(walk(), 5)
        loaders = batches(parts[0], 1024), batches(parts[1], 1024)
        model = random_model()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        step = optimizer.step
        with mock.patch.object(optimizer, "step") as spy:
            spy.side_effect = lambda: rates.append(optimizer.param_groups[0]["lr"]) or step()
            before = evaluate(model, loaders[1], torch.nn.L1Loss())[0]
            history = stock_rnn.train(model, *loaders, torch.nn.L1Loss(), optimizer, epochs=4)
        np.testing.assert_allclose(rates, 0.1 * (1 + np.cos(np.pi * np.arange(4) / 4)) / 2)
        best = min(before, *history["val_loss"])
        self.assertEqual(evaluate(model, loaders[1], torch.nn.L1Loss())[0], best)

    def test_a_network_of_ones_own_has_its_dropout_on_in_training_alone(self):
        model = Own(1, 1, batch_first=True)
        parts, _, _ = learn(model=model)
        self.assertEqual(model.modes, [False] + ([True] * 5 + [False]) * 5)
        model.train()
        self.assertEqual(stock_rnn.test(model, parts[2]), stock_rnn.test(model, parts[2]))

    def test_a_model_that_answers_a_tuple_or_no_column_is_refused_in_words(self):
        with self.assertRaisesRegex(Mistake, "the model answers tuple, and must answer a tensor"):
            learn(model=torch.nn.LSTM(1, 1, batch_first=True))
        with self.assertRaisesRegex(Mistake, r"answers .*\[30\].*must answer .*\[30, 1\]"):
            learn(model=torch.nn.Sequential(RNN(4), torch.nn.Flatten(0)))

    def test_the_model_ends_with_its_best_weights_which_may_be_those_it_came_with(self):
        parts, model, history = learn(epochs=20)
        val_loader = batches(parts[1], 1024)
        untrained = evaluate(Naive(), val_loader)[0]
        self.assertEqual(evaluate(model, val_loader)[0], min(untrained, *history["val_loss"]))
        self.assertLess(min(untrained, *history["val_loss"]), history["val_loss"][-1])
        _, model, history = learn(rate=1.0)
        self.assertLess(untrained, min(history["val_loss"]))
        self.assertEqual(evaluate(model, val_loader)[0], untrained)
        with self.assertRaisesRegex(Mistake, "finite"):
            learn(rate=1e30)

    def test_a_seed_or_a_state_repeats_a_run_exactly_whatever_the_report_draws(self):
        states = []
        runs = [learn(report=lambda state: states.append(state) or torch.rand(3))]
        runs += [learn(), learn(seed=1)]
        kept = copy.deepcopy(plain(states[1]))
        runs += [learn(seed=seed, state=states[1]) for seed in (5, 6)]
        self.assertEqual(plain(states[1]), kept)
        results = [(history, plain(model.state_dict())) for _, model, history in runs]
        self.assertEqual([results[1], *results[3:]], [results[0]] * 3)
        self.assertNotEqual(results[2][0], results[0][0])


class TestVerdict(InFolder):
    def say(self, count=100, rmse=(1, 1, 1, 1), t=(0, 0, 0)):
        names = ["model", "naive", "drift", "linear"]
        figures = {name: {"rmse": error} for name, error in zip(names, rmse)}
        return stock_rnn.verdict(figures, dict(zip(names[1:], t)), count)

    def test_the_limit_of_t_is_students(self):
        students = {10: 2.262, 20: 2.093, 30: 2.045, 60: 2.001, 120: 1.980, 1000: 1.962}
        for count, limit in students.items():
            self.assertAlmostEqual(stock_rnn.t_limit(count), limit, delta=0.01)

    def test_each_sentence_stands_for_its_case(self):
        for sentence, case in (
            ("Too few values to tell: 9, and 10 are needed.", {"count": 9, "t": (9, 9, 9)}),
            (
                "Worse than the last value: its error is 7.0% larger.",
                {"rmse": (1.07, 1, 1.1, 1.1), "t": (-3, 3, 3)},
            ),
            (
                "Better than all three simple forecasts: its error is 5.0% smaller than that of "
                "the straight line.",
                {"rmse": (0.95, 2, 1.5, 1), "t": (9, 8, 3)},
            ),
            (
                "Better than the last value (75.0% smaller), but not shown to be better than "
                "the straight line.",
                {"rmse": (0.25, 1, 1, 0.28), "t": (9, 8, 1.4)},
            ),
            (
                "Better than the last value (75.0% smaller), but worse than the straight line.",
                {"rmse": (0.25, 1, 1, 0.2), "t": (9, 8, -3)},
            ),
            ("No evidence", {"rmse": (0.9, 1, 1, 1), "t": (1.9, 9, 9)}),
            ("No evidence", {"rmse": (0.9995, 1, 1, 1), "t": (9, 9, 9)}),
            ("No evidence", {"rmse": (1.0005, 1, 1, 1), "t": (-9, 9, 9)}),
        ):
            self.assertTrue(self.say(**case).startswith(sentence), (case, self.say(**case)))

    def test_walks_with_and_without_drift_are_not_praised(self):
        noise = np.random.default_rng(8).normal(size=(3, 500))
        for values in (walk(1, 500), walk(2, 500), *np.cumprod(1.001 + 0.01 * noise, axis=1)):
            out = self.succeed(self.csv("walk.csv", values), "--epochs=20")
            self.assertNotIn("Better than all", out)

    def test_the_seasons_of_co2_are_learned_without_a_flag(self):
        out = self.succeed(CO2, "--column=ppm")
        self.assertIn("Better than the last value", out)
        self.assertLess(float(re.search(r"Theil U\D*(0\.\d+) ", out)[1]), 0.3)

    def test_seasons_below_zero_are_learned(self):
        out = self.succeed(self.csv("degrees.csv", season()), "--epochs=40")
        self.assertIn("values of open, difference", out)
        self.assertIn("Better than", out)


@unittest.skipUnless(os.name == "posix", "needs a POSIX system")
class TestSystem(InFolder):
    def test_a_run_killed_stopped_or_cut_by_head_ends_with_the_same_bits(self):
        flags = [*self.flags, "--epochs=120"]
        out = self.succeed(*flags, "--checkpoint=straight.pt")
        self.assertTrue(8 < len(re.findall(r"\n +\d+(?= +\d\.\d+ +\d\.\d+ )", out)) <= 13)
        command = flags
        for row, end in (("10", signal.SIGPIPE), ("40", signal.SIGKILL), ("70", signal.SIGINT)):
            process = self.start(*command, row=row)
            if end == signal.SIGPIPE:
                process.stdout.close()  # all that "| head" does when it has seen enough
            else:
                process.send_signal(end)
                out = process.stdout.read()
            err = process.stderr.read()
            self.assertNotIn("Traceback", err)
            self.assertEqual(process.wait(), 130 if end == signal.SIGINT else -end)
            command = ["resume", "stock_rnn.pt"]
        self.assertRegex(out, "stopped; to go on:  python .*stock_rnn.py resume stock_rnn.pt\n")
        self.succeed(*command)
        self.assertEqual(self.contents("straight.pt"), self.contents("stock_rnn.pt"))

    def test_a_new_run_takes_a_free_name_whatever_stands_there_and_keeps_it_from_others(self):
        self.write("stock_rnn.pt", "a thesis")
        Path("stock_rnn-2.pt").symlink_to("nowhere.pt")
        flags = [*self.flags, "--epochs=30"]
        runs = [self.start(*flags, f"--seed={seed}") for seed in (0, 1)]
        outs = [process.communicate()[0] for process in runs]
        saved = [re.search("saved in (.*)", out)[1] for out in outs]
        self.assertEqual(set(saved), {"stock_rnn-3.pt", "stock_rnn-4.pt"})
        for seed, path in enumerate(saved):
            self.succeed(*flags, f"--seed={seed}", f"--checkpoint=alone{seed}.pt")
            self.assertEqual(self.contents(path), self.contents(f"alone{seed}.pt"))
        self.assertEqual(Path("stock_rnn.pt").read_text(), "a thesis")
        self.assertFalse(Path("nowhere.pt").exists())

    def test_a_full_disk_or_a_read_only_folder_is_told_before_training_and_costs_nothing(self):
        import resource

        self.train()
        user = os.geteuid()
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        full = ((1000, limit[1]), 0o755, user)
        read_only = (limit, 0o555, user or 65534)  # root may write anywhere
        for size, mode, other in (full, read_only):
            for args in (self.flags, ["resume", "stock_rnn.pt", "--epochs=9"]):
                resource.setrlimit(resource.RLIMIT_FSIZE, size)
                os.chmod(".", mode)
                os.seteuid(other)
                try:
                    self.refuse("[Errno", *args)
                finally:
                    os.seteuid(user)
                    os.chmod(".", 0o755)
                    resource.setrlimit(resource.RLIMIT_FSIZE, limit)

    def test_a_bug_in_a_copy_keeps_its_traceback(self):
        source = Path(SCRIPT).read_text(encoding="utf-8")
        self.assertIn("a[:, -1]", source)
        self.write("copy.py", source.replace("self.linear(a[:, -1])", "self.linear(a.T)"))
        process = self.start(*self.flags, script="copy.py")
        self.assertIn("Traceback", process.communicate()[1])
        self.assertEqual(process.returncode, 1)

    def test_names_that_the_output_cannot_show_cost_nothing(self):
        self.csv("café.csv", walk(steps=120))
        env = {**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
        process = self.start("café.csv", *SMALL, env=env)
        out, err = process.communicate()
        self.assertEqual(process.returncode, 0, err)
        self.assertTrue(out.startswith("café.csv"))


class TestCommandLine(InFolder):
    def test_train_test_and_predict_work_on_the_data_that_comes_along(self):
        out = self.succeed("--epochs=3")
        table = (
            r"(?s)naive\n +1 .*\n +2 .*\n +3 .*model +naive +drift +linear\n.*(Better|Worse|No )"
        )
        self.assertRegex(out, table)
        self.assertRegex(out, r"\AbtcusdX?_20h.csv, 877 values of open, relative".replace("X?", ""))
        again = self.succeed("test", "stock_rnn.pt", BITCOIN)
        self.assertRegex(again, r"has seen the first 746 values(?s:.*)131 values never seen")
        self.assertIn(again[again.index("root mean") :], out)
        other = self.succeed("test", "stock_rnn.pt", CO2, "--column=ppm")
        self.assertRegex(other, "^\ntest on 506 values\n")

    def test_test_finds_the_last_window_of_the_training_anywhere_in_a_file(self):
        self.train()
        values = load_quietly("values.csv")
        seen = 120 - int(120 * 0.15)
        for start, more in ((1, []), (50, [900, 910]), (seen - 5, [])):
            self.csv("part.csv", [*values[start:], *more])
            out = self.succeed("test", "stock_rnn.pt", "part.csv")
            self.assertIn(f"has seen the first {seen - start} values", out)
            self.assertIn(f"test on {120 - seen + len(more)} values never seen", out)
        self.refuse("no value to test on", "test", "stock_rnn.pt", self.csv("a.csv", values[:seen]))

    def test_predict_prints_plain_numbers_and_warns_where_they_leave_the_range(self):
        self.succeed(self.csv("sine.csv", 50 + np.sin(np.arange(200) / 4)), *SMALL)
        values = [*np.linspace(1, 2, 4), 12345.5]  # a window is enough
        status, out, err = self.main(
            "predict", "stock_rnn.pt", self.csv("few.csv", values), "--steps=3"
        )
        numbers = [float(line) for line in out.splitlines()]
        self.assertEqual((status, len(numbers), "e" in out), (0, 3, False))
        model, about = load_checkpoint("stock_rnn.pt")
        data = StockDataset(values, 5, "relative", about.scale)
        np.testing.assert_allclose(numbers, forecast(model, data, 3)[0], rtol=1e-7)
        outside = [number for number in numbers if not 1 <= number <= 12345.5]
        self.assertEqual("leaves the range" in err, bool(outside))
        mocked = np.array([[60.0, 2.0, 0.5]])
        with mock.patch.object(stock_rnn, "forecast", return_value=mocked):
            _, out, err = self.main("predict", "stock_rnn.pt", "few.csv", "--steps=3")
        self.assertEqual(out, "60\n2\n0.5\n")
        self.assertIn("from step 3 on the forecast leaves the range", err)

    def test_a_loss_that_still_falls_at_the_end_is_told(self):
        for falling, losses in ((True, [3, 2, 1]), (False, [3, 1, 2]), (False, [3, 2, 1.999])):
            self.train()
            path = "stock_rnn.pt"
            saved = torch.load(path, weights_only=True)
            saved["state"]["history"]["val_loss"] = losses
            torch.save(saved, path)
            self.assertEqual("still falling" in self.succeed("resume", path), falling)
            os.remove(path)

    def test_resume_brings_the_settings_back_and_goes_on_to_more_epochs(self):
        flags = ["--normalise=range", "--cell=gru", "--seed=4"]
        self.train(*flags, "--epochs=8", "--checkpoint=straight.pt")
        process_args = [*self.flags, *flags, "--epochs=8"]
        with mock.patch.object(stock_rnn, "report_and_save", side_effect=stop_after_five):
            status, out, _ = self.main(*process_args)
        self.assertEqual(status, 130)
        self.assertIn("stopped; to go on", out)
        Path("values.csv").rename("moved.csv")
        self.refuse("values.csv", "resume", "stock_rnn.pt")
        self.refuse("other values", "resume", "stock_rnn.pt", self.csv("other.csv", walk(2, 120)))
        self.succeed("resume", "stock_rnn.pt", "moved.csv")
        self.assertEqual(self.contents("stock_rnn.pt"), self.contents("straight.pt"))
        self.succeed("resume", "stock_rnn.pt", "moved.csv", "--epochs=10")
        self.assertEqual(len(load_checkpoint("stock_rnn.pt")[1].state["history"]["val_loss"]), 10)

    @unittest.skipUnless(find_spec("matplotlib"), "matplotlib is not installed")
    def test_the_plot_is_a_picture(self):
        self.train("--plot=a.png")
        self.assertEqual(Path("a.png").read_bytes()[:8], b"\x89PNG\r\n\x1a\n")

    def test_a_plot_of_another_ending_or_without_matplotlib_is_refused(self):
        self.refuse("must end in .png, .svg or .pdf", *self.flags, "--plot=thesis.txt")
        with mock.patch.object(stock_rnn.importlib.util, "find_spec", return_value=None):
            self.refuse("pip install matplotlib", *self.flags, "--plot=a.png")

    def test_every_mistake_is_told_in_a_line_and_changes_nothing(self):
        self.csv("short.csv", [1, 2, 3])
        self.csv("flat.csv", [5] * 120)
        self.csv("bad.csv", [5, "six"])
        self.csv("below.csv", [*walk(steps=119), -3])
        self.train()
        for saying, *commands in (
            ("none.csv", "train none.csv", "test stock_rnn.pt none.csv", "resume none.csv"),
            ("directory", "train .", "test . values.csv"),
            (
                "name one with --column",
                "--column=close",
                f"train {CO2}",
                f"test stock_rnn.pt {CO2}",
            ),
            ("line 3", "train bad.csv"),
            ("without target", "train short.csv", "--test-fraction=0.99", "--val-fraction=0"),
            ("window of 5", "predict stock_rnn.pt short.csv", "test stock_rnn.pt short.csv"),
            ("alike", "train flat.csv"),
            (
                "train with --normalise difference",
                "train below.csv",
                "predict stock_rnn.pt below.csv",
            ),
            ("argument", "--normalise=foo", "--hidden-size=ten", "--hiden-size=3", "test"),
            ("argument", "predict stock_rnn.pt", "resume --seed=1", "--cell=cnn"),
            ("whole number from 1", "--hidden-size=0", f"--epochs={10**400}", "--batch-size=0"),
            ("whole number from 0", "--seed=-1"),
            ("whole number from 1 to 4096", f"--hidden-size={10**9}"),
            ("number from 0 on", "--learning-rate=nan", "--val-fraction=-inf"),
            ("--seq-length 100", "--seq-length=100"),
            ("--device nonsense", "--device=nonsense"),
            ("--device meta", "--device=meta"),
            ("CUDA", *["--device=cuda"] * (not torch.cuda.is_available())),
            ("nowhere", "--checkpoint=nowhere/stock_rnn.pt"),
            ("damaged", "test values.csv values.csv", "resume short.csv"),
        ):
            for command in commands:
                with self.subTest(command):
                    self.refuse(saying, *self.flags * command.startswith("-"), *command.split())

    def test_python_snippets_about_stock_rnn_run_as_written(self):
        readme = (HERE / "README.md").read_text(encoding="utf-8")
        snippets = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
        Path("data").symlink_to(HERE / "data")
        self.assertIn("stock_rnn", "".join(snippets))
        for snippet in filter(re.compile("stock_rnn").search, snippets):
            with (
                contextlib.redirect_stdout(io.StringIO()),
                contextlib.redirect_stderr(io.StringIO()),
            ):
                exec(snippet, {})


class TestCheckpoint(InFolder):
    def setUp(self):
        super().setUp()
        self.train()

    def values(self, path):
        model, about = load_checkpoint(path)
        data = StockDataset(load_quietly("values.csv"), 5, scale=about.scale)
        return plain(vars(about)), forecast(model, data, 2).tolist()

    def test_a_damaged_checkpoint_is_refused_or_gives_the_very_same_values(self):
        whole = Path("stock_rnn.pt").read_bytes()
        same = self.values("stock_rnn.pt")
        damaged = [b"", b"PK" + bytes(1000), self.rng.bytes(5000), whole[:-1]]
        for a, b, bit in self.rng.integers(0, (len(whole), len(whole), 8), (100, 3)):
            moved = whole[b : b + 40]
            flipped = bytes([whole[a] ^ 1 << bit])
            damaged.append(whole[:a])
            damaged.append(whole[:a] + moved + whole[a + 40 :])
            damaged.append(whole[:a] + flipped + whole[a + 1 :])
        refused = 0
        for content in damaged:
            try:
                self.assertEqual(self.values(self.write("damaged.pt", content)), same)
            except Mistake as error:
                self.assertIn("damaged.pt is damaged", str(error))
                refused += 1
        self.assertGreater(refused, 150)

    def test_forged_checkpoints_are_refused_and_nothing_in_one_is_run(self):
        whole = torch.load("stock_rnn.pt", weights_only=True)
        weights = RNN(5).state_dict()
        settings = whole["settings"]
        forged = [[], weights, whole | {"settings": settings | {"hidden_size": "x"}}]
        forged.append(whole | {"settings": settings | {"hidden_size": 10**5}})
        for name in ("model", "best"):
            forged.append(whole | {"state": whole["state"] | {name: weights}})
        for content in [*forged, whole | {"state": Trap()}]:
            torch.save(content, "forged.pt")
            for args in (["predict", "forged.pt", "values.csv"], ["resume", "forged.pt"]):
                self.refuse("forged.pt is damaged", *args)
        torch.load("forged.pt", weights_only=False)  # the trap does work where pickles are allowed
        self.assertTrue(Path("witness").exists())

    def test_a_checkpoint_of_an_earlier_version_is_refused_as_such(self):
        saved = torch.load("stock_rnn.pt", weights_only=True)
        del saved["settings"]["cell"]
        torch.save(saved, "old.pt")
        self.refuse("of an earlier version of stock_rnn.py", "resume", "old.pt")


class Trap:
    """What a forged pickle can do: it creates a file when it is loaded."""

    def __reduce__(self):
        return (Path.touch, (Path("witness"),))


def load_quietly(path):
    """The values of a file, without a word about their order."""
    with contextlib.redirect_stderr(io.StringIO()):
        return load_prices(path)


def stop_after_five(path, about, naive_loss, state):
    """Save, and stop like a person with Ctrl-C after the fifth epoch."""
    stock_rnn.write_whole(path, stock_rnn.checkpoint_of(state, about))
    if len(state["history"]["val_loss"]) == 5:
        raise KeyboardInterrupt


if find_spec("torch"):

    class Own(torch.nn.LSTM):
        """A network of a user's own, with dropout, that notes when it is in training mode."""

        modes = []

        def forward(self, x):
            self.modes.append(self.training)
            return torch.dropout(super().forward(x)[0][:, -1], 0.5, self.training)


if __name__ == "__main__":
    unittest.main()
