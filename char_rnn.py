# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy>=1.26"]
# ///
# SPDX-License-Identifier: MIT-0
"""A character-level recurrent neural network, from scratch in NumPy.

    python char_rnn.py                          learn to write fables, in less than a minute
    python char_rnn.py train my.txt             learn from your own text
    python char_rnn.py sample char_rnn.npz      write new text with what was learned

One hidden layer reads a text character by character (x_t) and says how likely each next one is (y_t):

    a_t = tanh(Waa a_{t-1} + Wax x_t + ba)
    y_t = softmax(Wya a_t + by)
    L   = - sum over t of log y_t[target_t]

Shapes, everywhere below: T steps, B streams read side by side, H hidden units, V distinct characters.
"""

import argparse
import csv
import hashlib
import io
import itertools
import json
import math
import os
import re
import shlex
import signal
import sys
import time
import zlib
from pathlib import Path

import numpy as np

# ---------------------------------------------------------------------------------------------------------------------
# Data: from a text file to batches of character indices


class DataReader:
    """Reads a UTF-8 text and deals it out as batches of character indices.

    The last val_fraction of the text is held out in val_ids. The rest is cut into batch_size stretches that lie end
    to end; stream b reads stretch b from its start to its end, seq_length characters at a time. A text too short to
    hold anything out is used for training whole (val_ids is then empty).

    Raises ValueError for a text that is not UTF-8, has fewer than two distinct characters, or is too short.
    """

    def __init__(self, path, seq_length, batch_size=1, val_fraction=0.1):
        require_sizes(seq_length=seq_length, batch_size=batch_size)
        if not 0 <= val_fraction < 1:
            raise ValueError(f"val_fraction must be at least 0 and less than 1, not {val_fraction}")
        self.seq_length, self.batch_size, self.position = seq_length, batch_size, 0
        self.chars, ids = read_text(path)
        self.vocab_size = len(self.chars)
        self.char_to_ix = {char: ix for ix, char in enumerate(self.chars)}
        self.ix_to_char = dict(enumerate(self.chars))

        needed = seq_length * batch_size + 1
        if len(ids) < needed:
            raise ValueError(
                f"{path} has {len(ids)} characters, but seq_length {seq_length} x batch_size {batch_size} "
                f"needs at least {needed}"
            )
        held_out = int(len(ids) * val_fraction)
        if held_out < 2 or len(ids) - held_out < needed:
            held_out = 0
        self.train_ids, self.val_ids = ids[: len(ids) - held_out], ids[len(ids) - held_out :]
        self.stretch = (len(self.train_ids) - 1) // (seq_length * batch_size) * seq_length
        self.streams = side_by_side(self.train_ids, self.stretch, batch_size)

    def just_started(self):
        """True when the next batch is the first of a pass over the text, where the hidden state starts from zero."""
        return self.position == 0

    def next_batch(self):
        """The next (inputs, targets), each (T, B): the targets are the inputs shifted by one character."""
        window = self.streams[self.position : self.position + self.seq_length + 1].astype(np.intp, order="C")
        self.position = (self.position + self.seq_length) % self.stretch
        return window[:-1], window[1:]


def read_text(path):
    """The sorted distinct characters of a UTF-8 file, and the whole text as an array of indices into them.

    Works through the text in pieces, so that memory stays near twice the file's size. A byte-order mark is dropped, and
    line ends of any system become newlines.
    """
    with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
        pieces = list(iter(lambda: file.read(1 << 20), ""))

    def code_points():
        return (np.frombuffer(piece.encode("utf-32-le", "surrogatepass"), np.uint32) for piece in pieces)

    seen = np.zeros(sys.maxunicode + 1, bool)
    for codes in code_points():
        seen[codes] = True
    if seen[
        0xDC80:0xDD00
    ].any():  # what surrogateescape makes of the bytes 0x80 to 0xff where they are not UTF-8
        text = "".join(pieces)
        bad = re.search("[\udc80-\udcff]", text)
        line, column = text.count("\n", 0, bad.start()) + 1, bad.start() - text.rfind("\n", 0, bad.start())
        raise ValueError(
            f"{path} is not UTF-8 text: line {line}, character {column} is the byte 0x{ord(bad[0]) - 0xDC00:02x}"
        )
    distinct = np.flatnonzero(seen)
    if len(distinct) < 2:
        what = f"holds nothing but {chr(distinct[0])!r}" if len(distinct) else "is empty"
        raise ValueError(f"{path} {what}: learning takes at least 2 distinct characters")

    index = np.zeros(sys.maxunicode + 1, np.min_scalar_type(len(distinct) - 1))
    index[distinct] = np.arange(len(distinct))
    ids, start = np.empty(sum(map(len, pieces)), index.dtype), 0
    for codes in code_points():
        ids[start : start + len(codes)] = index[codes]
        start += len(codes)
    return [chr(code) for code in distinct], ids


def side_by_side(ids, stretch, streams):
    """A (stretch + 1, streams) view: column b is stretch b of the text and the one character that follows it."""
    return np.lib.stride_tricks.sliding_window_view(ids, stretch + 1)[::stretch][:streams].T


def encode(text, char_to_ix):
    """The character indices of text; raises ValueError naming the characters that the model never saw."""
    unknown = sorted(set(text) - set(char_to_ix))
    if unknown:
        raise ValueError(f"the model never saw {' '.join(map(repr, unknown))}")
    if not text:
        raise ValueError("the start text is empty: at least 1 character is needed")
    return np.array([char_to_ix[char] for char in text], np.intp)


def require_sizes(**sizes):
    """Raises ValueError unless every size is a whole number of at least 1 and less than 2^31."""
    for name, size in sizes.items():
        if not isinstance(size, (int, np.integer)) or size < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, not {size}")
        if size >= 1 << 31:
            raise ValueError(f"{name} {size} is too large")


def require_seed(seed):
    """Raises ValueError unless seed is None (another one each time) or a whole number of at least 0."""
    if seed is not None and seed < 0:
        raise ValueError(f"seed must be a whole number of at least 0, not {seed}")


# ---------------------------------------------------------------------------------------------------------------------
# Model: forward, loss, backward, update, train, and what a trained model is asked for


def softmax(x):
    """exp(x_i) / sum over j of exp(x_j) along the last axis; the maximum goes first so that nothing overflows."""
    x = x - x.max(axis=-1, keepdims=True)
    np.exp(x, out=x)
    x /= x.sum(axis=-1, keepdims=True)
    return x


def adam(gradient, moments, t, learning_rate, beta1=0.9, beta2=0.999, epsilon=1e-8):
    """The t-th step of Adam, m_hat / (sqrt(v_hat) + epsilon), with moments corrected for their start at zero (Kingma
    and Ba, 2015). Here m and v are the plain sums m = beta1 m + g and v = beta2 v + g^2, so that all their factors
    meet in two numbers, and everything is done in place: a step costs what its passes over memory cost."""
    m, v = moments
    m *= beta1
    m += gradient
    v *= beta2
    v += np.square(gradient, out=gradient)
    m_factor = (1 - beta1) / (1 - beta1**t)  # m_hat = m_factor * m
    v_factor = (1 - beta2) / (1 - beta2**t)  # v_hat = v_factor * v
    step = np.sqrt(v, out=gradient)
    step += epsilon / math.sqrt(v_factor)
    np.divide(m, step, out=step)
    step *= learning_rate * m_factor / math.sqrt(v_factor)
    return step


def adagrad(gradient, moments, t, learning_rate, epsilon=1e-10):
    """A step of Adagrad: g / (sqrt(sum of all g^2 so far) + epsilon) (Duchi, Hazan and Singer, 2011)."""
    moments[0] += np.square(gradient)
    return learning_rate * gradient / (np.sqrt(moments[0]) + epsilon)


def sgd(gradient, moments, t, learning_rate):
    """A step of stochastic gradient descent: g."""
    return learning_rate * gradient


MAX_EVALUATED = 1 << 17  # characters
OPTIMIZERS = {"adam": (adam, 2), "adagrad": (adagrad, 1), "sgd": (sgd, 0)}  # name: (rule, moments it keeps)


class RNN:
    """A one-layer tanh RNN with a softmax over the next character, trained by backpropagation through time.

    Parameters: Wax (H, V), Waa (H, H), Wya (V, H), ba (H,), by (V,). They are views into one flat vector, theta, so
    that an optimiser is one rule for one array. The matrices lie column by column (order "F"), so that the column of
    Wax that belongs to a character is in one piece. Take dtype=np.float64 for gradient checks.

    Raises ValueError for a size, rate or optimizer that cannot be.
    """

    def __init__(
        self, hidden_size, vocab_size, seq_length, learning_rate, optimizer="adam", seed=0, dtype=np.float32
    ):
        require_sizes(hidden_size=hidden_size, vocab_size=vocab_size, seq_length=seq_length)
        if not 0 < learning_rate < math.inf:
            raise ValueError(f"learning_rate must be a positive number, not {learning_rate}")
        require_seed(seed)
        if optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer must be one of {', '.join(OPTIMIZERS)}, not {optimizer}")
        H, V = self.hidden_size, self.vocab_size = hidden_size, vocab_size
        self.seq_length, self.learning_rate, self.dtype = seq_length, learning_rate, np.dtype(dtype)
        self.rng = np.random.default_rng(seed)

        self.shapes = {"Wax": (H, V), "Waa": (H, H), "Wya": (V, H), "ba": (H,), "by": (V,)}
        self.theta = np.zeros(sum(math.prod(shape) for shape in self.shapes.values()), dtype)
        self.parameters = self.named(self.theta)
        self.__dict__.update(self.parameters)
        # An orthogonal Waa keeps the length of what it carries on; the biases start at zero.
        self.Wax = self.rng.standard_normal((H, V))
        self.Waa = np.linalg.qr(self.rng.standard_normal((H, H)))[0]
        self.Wya = self.rng.standard_normal((V, H)) / math.sqrt(H)

        self.rule, kept = OPTIMIZERS[optimizer]
        self.moments = np.zeros((kept, len(self.theta)), dtype)
        self.iteration, self.seconds = 0, 0.0
        self.smooth_loss = seq_length * math.log(V)  # what guessing costs, before anything is learned
        self.losses, self.history = [], []
        self.a_prev = None
        self.best_loss, self.best_theta = math.inf, None  # by validation

        # A large block that comes and goes makes glibc keep freed memory for the next step instead of returning it to
        # the system: training is about a quarter faster, and nothing else changes (mallopt(3), M_MMAP_THRESHOLD).
        np.empty(31 << 20, np.uint8)

    def named(self, vector):
        """The five parameters, or anything laid out like them, as views of one flat vector, by name."""
        views, start = {}, 0
        for name, shape in self.shapes.items():
            views[name] = vector[start : start + math.prod(shape)].reshape(shape, order="F")
            start += math.prod(shape)
        return views

    def __setattr__(self, name, value):
        """Assigning to a parameter copies into theta, where the optimiser finds it."""
        if name in self.__dict__.get("parameters", ()):
            self.parameters[name][...] = value
        else:
            super().__setattr__(name, value)

    def forward(self, inputs, a_prev):
        """The hidden states and the probabilities of the next character, at every step.

            a_t = tanh(Waa a_{t-1} + Wax x_t + ba)        y_t = softmax(Wya a_t + by)

        inputs (T, B) are character indices and a_prev is (B, H); returns a (T+1, B, H) with a[0] = a_prev, and
        y_pred (T, B, V). A single sequence, (T,) with (H,), works the same without the B axis.
        """
        a = np.empty((len(inputs) + 1, *inputs.shape[1:], self.hidden_size), self.dtype)
        a[0] = a_prev
        a[1:] = (self.Wax.T + self.ba).take(inputs, axis=0)  # x_t is one-hot: Wax x_t is a column of Wax
        a_before, Waa_T, product = a[0], self.Waa.T, np.empty_like(a[0])
        for a_t in a[1:]:
            a_before.dot(Waa_T, product)
            a_t += product
            np.tanh(a_t, a_t)
            a_before = a_t
        z = a[1:].reshape(-1, self.hidden_size).dot(self.Wya.T)
        z += self.by
        return a, softmax(z).reshape(*inputs.shape, self.vocab_size)

    def loss(self, y_pred, targets):
        """The cross-entropy L = - sum over t of log y_t[target_t], in nats; the mean over streams."""
        y_target = y_pred.reshape(-1, self.vocab_size)[np.arange(targets.size), targets.ravel()]
        nats = -np.log(np.maximum(y_target, np.finfo(self.dtype).tiny))
        return float(nats.sum()) * len(targets) / targets.size

    def backward(self, inputs, a, y_pred, targets):
        """The gradients of loss by backpropagation through time, unclipped: a dict with one array per parameter.

            dz_t = (y_t - onehot(target_t)) / B           through the cross-entropy and the softmax
            da_t = Wya' dz_t + Waa' dn_{t+1}              from this step's output and from the step after
            dn_t = (1 - a_t^2) da_t                       through the tanh
            dWya = sum dz_t a_t'    dby = sum dz_t    dWax = sum dn_t x_t'    dWaa = sum dn_t a_{t-1}'    dba = sum dn_t

        Only dn_t, from dn_{t+1}, goes step by step; each sum over steps and streams is one matrix product.
        """
        dz = y_pred.reshape(-1, self.vocab_size) - self.one_hot(targets)
        dz /= targets.size / len(targets)
        dn = dz.dot(self.Wya).reshape(a[1:].shape)
        slope = np.square(a[1:])
        np.subtract(1, slope, out=slope)
        dn[-1] *= slope[-1]
        dn_after, Waa, product = dn[-1], self.Waa, np.empty_like(a[0])
        for dn_t, slope_t in zip(dn[-2::-1], slope[-2::-1], strict=True):
            dn_after.dot(Waa, product)
            dn_t += product
            dn_t *= slope_t
            dn_after = dn_t

        dn, a_before, a = (hidden.reshape(-1, self.hidden_size) for hidden in (dn, a[:-1], a[1:]))
        ones = np.ones(len(dn), self.dtype)
        return {
            "Wax": self.one_hot(inputs).T.dot(dn).T,
            "Waa": a_before.T.dot(dn).T,
            "Wya": a.T.dot(dz).T,
            "ba": ones.dot(dn),
            "by": ones.dot(dz),
        }

    def one_hot(self, indices):
        """One row for each index: (indices.size, V), all zeros but for a single 1."""
        rows = np.zeros((indices.size, self.vocab_size), self.dtype)
        rows[np.arange(indices.size), indices.ravel()] = 1
        return rows

    def update(self, grads, scale=1.0):
        """Clip each element of the gradients to [-5, 5], then one step of the optimiser at learning_rate * scale."""
        gradient = np.concatenate([grads[name].ravel(order="F") for name in self.shapes])
        gradient.clip(-5, 5, out=gradient)
        self.iteration += 1
        self.theta -= self.rule(gradient, self.moments, self.iteration, self.learning_rate * scale)

    def schedule(self, max_iters):
        """The share of learning_rate that the next update takes: a short climb to 1, then half a cosine down to 0."""
        climb = (self.iteration + 1) / min(100, max_iters / 10)
        return min(1, climb) * (1 + math.cos(math.pi * self.iteration / max_iters)) / 2

    @np.errstate(over="ignore", invalid="ignore")  # a loss that is nan is told in words
    def train(self, data_reader, max_iters=4000, threshold=0.0, report=None, report_every=500, stop=()):
        """The hand-out's nine steps; returns the loss of every iteration so far (summed over T, mean over streams).

        Ends when smooth_loss, a moving average of the loss, is not above threshold any more, when the model has seen
        max_iters iterations in all, or when stop turns true (say, a list that a signal handler appends to). The
        learning rate follows schedule(max_iters). report(rnn) is called every report_every iterations and at the end;
        without one, progress is printed.

        Raises ValueError for a reader of other sizes, FloatingPointError when the loss is no longer a number.
        """
        sizes, expected = (data_reader.vocab_size, data_reader.seq_length), (self.vocab_size, self.seq_length)
        if sizes != expected:
            raise ValueError(f"the reader has (vocab_size, seq_length) {sizes}, the model {expected}")
        report = report or Progress(data_reader, max_iters, threshold)
        zeros, started = np.zeros((data_reader.batch_size, self.hidden_size), self.dtype), self.iteration
        if self.a_prev is None:
            self.a_prev = zeros
        while self.smooth_loss > threshold and self.iteration < max_iters and not stop:  # step 9: repeat
            if data_reader.just_started():  # step 1
                self.a_prev = zeros
            inputs, targets = data_reader.next_batch()  # step 2
            a, y_pred = self.forward(inputs, self.a_prev)  # step 3
            loss = self.loss(y_pred, targets)
            if not math.isfinite(loss):
                raise FloatingPointError(
                    f"the loss became {loss} at iteration {self.iteration + 1}: "
                    f"try a learning rate lower than {self.learning_rate:g}"
                )
            grads = self.backward(inputs, a, y_pred, targets)  # step 4
            self.update(grads, self.schedule(max_iters))  # step 5
            self.smooth_loss += 0.01 * (loss - self.smooth_loss)  # step 6
            self.losses.append(loss)
            self.a_prev = a[-1].copy()  # step 7
            if self.iteration % report_every == 0:  # step 8
                report(self)
        if self.iteration % report_every and self.iteration > started and not stop:
            report(self)
        return self.losses

    def evaluate(self, data_reader):
        """The mean cross-entropy per character, in nats, over the held-out text (at most MAX_EVALUATED of it).

        The hidden state is carried through the text. A long text is read as several streams side by side; each
        starts from the state that the last 200 characters of the stretch before it leave behind.
        Raises ValueError when nothing is held out.
        """
        ids = data_reader.val_ids[: MAX_EVALUATED + 1]
        if len(ids) < 2:
            raise ValueError(f"{len(ids)} characters are held out, and at least 2 are needed")
        streams = max(1, len(ids) // 2000)
        stretch = (len(ids) - 1) // streams
        text = side_by_side(ids, stretch, streams).astype(np.intp)
        a_prev = np.zeros((streams, self.hidden_size), self.dtype)
        if streams > 1:
            a_prev[1:] = self.forward(text[-201:-1], a_prev)[0][-1, :-1]
        nats = 0.0
        for start in range(0, stretch, 100):
            piece = text[start : start + 101]
            a, y_pred = self.forward(piece[:-1], a_prev)
            nats += self.loss(y_pred, piece[1:])
            a_prev = a[-1]
        return nats / stretch

    def generate(self, start_ixs, temperature=1.0, a_prev=0.0):
        """Yield character indices without end, each drawn from softmax((Wya a_t + by) / temperature).

        The whole of start_ixs (T,) is read first, from hidden state a_prev (H,). Temperature 0 is the likeliest
        character every time. Raises ValueError for a temperature that is negative or not a number.
        """
        if not 0 <= temperature < math.inf:
            raise ValueError(f"temperature must be zero or a positive number, not {temperature}")
        ixs, a = np.atleast_1d(start_ixs), a_prev
        while True:
            for start in range(0, len(ixs), 1000):
                a = self.forward(ixs[start : start + 1000], a)[0][-1]
            z = (self.Wya @ a + self.by).astype(np.float64)
            if temperature == 0:
                ix = int(z.argmax())
            else:
                with np.errstate(over="ignore"):
                    p = softmax((z - z.max()) / temperature)
                ix = int(self.rng.choice(self.vocab_size, p=p))
            yield ix
            ixs = np.array([ix])

    def sample(self, a_prev, seed_ix, n, temperature=1.0):
        """n character indices, drawn one after the other from hidden state a_prev (H,) and the character seed_ix."""
        a_prev = np.reshape(a_prev, self.hidden_size)
        return list(itertools.islice(self.generate(seed_ix, temperature, a_prev), n))

    def predict(self, data_reader, start, n, temperature=1.0):
        """The text start, which warms up the hidden state, followed by n generated characters.

        Raises ValueError when start is empty or has characters that data_reader does not know.
        """
        ixs = itertools.islice(self.generate(encode(start, data_reader.char_to_ix), temperature), n)
        return start + "".join(data_reader.ix_to_char[ix] for ix in ixs)


# ---------------------------------------------------------------------------------------------------------------------
# Checkpoints: all that sampling and an exact resume need, in one .npz file

SCALARS = ("iteration", "seconds", "smooth_loss", "best_loss")
HISTORY = ("iteration", "seconds", "train_nats", "val_nats")  # seconds of training, nats per character


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


def save_checkpoint(path, rnn, data_reader, settings):
    """Save the best weights by their names, what training needs to go on exactly, and the settings (a dict)."""
    about = {
        "settings": settings,
        "chars": "".join(data_reader.chars),
        "text": text_mark(data_reader),
        "position": data_reader.position,
        "random": rnn.rng.bit_generator.state,
        **{name: getattr(rnn, name) for name in SCALARS},
    }
    file = io.BytesIO()
    np.savez(
        file,
        **rnn.named(rnn.theta if rnn.best_theta is None else rnn.best_theta),
        theta=rnn.theta,
        moments=rnn.moments,
        a_prev=rnn.a_prev,
        losses=np.array(rnn.losses),
        history=np.array(rnn.history).reshape(-1, len(HISTORY)),
        about=np.array(json.dumps(about)),
    )
    data = file.getvalue()
    write_whole(path, data + hashlib.sha256(data).digest())


def load_checkpoint(path):
    """The model of a checkpoint, as training left it, and a dict of the rest. No code in the file is ever run.

    Its best weights are in best_theta. Raises ValueError for anything but a whole checkpoint of this script.
    """
    data = Path(path).read_bytes()
    if hashlib.sha256(data[:-32]).digest() != data[-32:]:
        raise ValueError(f"{path} is damaged, or not a checkpoint of char_rnn.py")
    try:
        with np.load(io.BytesIO(data[:-32]), allow_pickle=False) as file:
            arrays = dict(file)
        about = json.loads(str(arrays.pop("about")))
        settings = {
            name: type(default)(about["settings"][name]) for name, (default, _) in HYPERPARAMETERS.items()
        }
        about["settings"], about["position"] = settings, int(about["position"])
        rnn = new_model(len(about["chars"]), settings)
        rnn.a_prev = np.zeros((settings["batch_size"], rnn.hidden_size), rnn.dtype)
        rnn.best_theta = np.empty_like(rnn.theta)
        places = {
            **rnn.named(rnn.best_theta),
            "theta": rnn.theta,
            "moments": rnn.moments,
            "a_prev": rnn.a_prev,
        }
        places["losses"] = np.zeros(about["iteration"])
        places["history"] = np.zeros((len(arrays["history"]), len(HISTORY)))
        for name, place in places.items():
            array = arrays.pop(name)
            if (array.shape, array.dtype) != (place.shape, place.dtype):
                raise ValueError(f"{name} is {array.dtype} {array.shape}, not {place.dtype} {place.shape}")
            place[...] = array
        if arrays:
            raise ValueError(f"it holds {', '.join(arrays)} as well")
        for name in SCALARS:
            setattr(rnn, name, type(getattr(rnn, name))(about[name]))
        if math.isinf(rnn.best_loss):
            rnn.best_theta = None
        rnn.losses, rnn.history = places["losses"].tolist(), places["history"].tolist()
        rnn.rng.bit_generator.state = about["random"]
    except Exception as error:  # whatever a file made by other hands may bring about
        raise ValueError(
            f"{path} is not a checkpoint of char_rnn.py: {type(error).__name__}: {error}"
        ) from None
    return rnn, about


def new_model(vocab_size, settings):
    """The untrained model that the settings describe."""
    names = ("hidden_size", "seq_length", "learning_rate", "optimizer", "seed")
    return RNN(vocab_size=vocab_size, **{name: settings[name] for name in names})


def text_mark(data_reader):
    """A number that tells whether a text is the one that a checkpoint was trained on."""
    return zlib.crc32(data_reader.val_ids, zlib.crc32(data_reader.train_ids))


# ---------------------------------------------------------------------------------------------------------------------
# Command line

DATA = Path(__file__).parent / "data" / "fables.txt"
CHECKPOINT = "char_rnn.npz"
HYPERPARAMETERS = {  # name: (default, what it is)
    "hidden_size": (256, "hidden units"),
    "seq_length": (32, "steps of backpropagation through time"),
    "batch_size": (32, "streams of text read side by side"),
    "learning_rate": (6e-3, "highest learning rate; it climbs to this at first and ends at zero"),
    "optimizer": ("adam", "one of " + ", ".join(OPTIMIZERS)),
    "max_iters": (4000, "iterations, one update each"),
    "threshold": (0.0, "stop when the smooth loss (nats, summed over steps) falls to this"),
    "val_fraction": (0.1, "share of the text, at its end, held out for validation"),
    "seed": (0, "seed of the random numbers"),
}


class Progress:
    """What happens between iterations: a line on how training goes, validation, and now and then a sample.

    save(rnn), where given, is called last.
    """

    def __init__(self, data_reader, max_iters, threshold=0.0, save=None):
        self.reader, self.max_iters, self.threshold, self.save = data_reader, max_iters, threshold, save
        self.chars = data_reader.seq_length * data_reader.batch_size
        # To read the held-out text once for every four times its length in training costs a tenth of the time or so.
        self.validate_every = 500 * math.ceil(
            4 * min(len(data_reader.val_ids), MAX_EVALUATED) / (500 * self.chars)
        )
        self.since = time.perf_counter()
        print(
            f"{'iteration':>13}{'smooth loss':>13}{'nats':>8}{'bits':>8}{'validation':>12}{'chars/s':>12}{'left':>8}"
        )

    def __call__(self, rnn):
        rnn.seconds += time.perf_counter() - self.since
        nats, val_nats = rnn.smooth_loss / rnn.seq_length, math.nan
        last = rnn.iteration >= self.max_iters or rnn.smooth_loss <= self.threshold
        if len(self.reader.val_ids) and (last or rnn.iteration % self.validate_every == 0):
            val_nats = rnn.evaluate(self.reader)
            if val_nats < rnn.best_loss:
                rnn.best_loss, rnn.best_theta = val_nats, rnn.theta.copy()
        rnn.history.append([rnn.iteration, rnn.seconds, nats, val_nats])

        rate = rnn.iteration * self.chars / rnn.seconds
        left = 0 if last else min((self.max_iters - rnn.iteration) * self.chars / rate, 359_999)
        line = f"{rnn.iteration:>13,}{rnn.smooth_loss:>13.2f}{nats:>8.3f}{nats / math.log(2):>8.3f}"
        line += f"{'' if math.isnan(val_nats) else f'{val_nats:.3f}':>12}{rate:>12,.0f}"
        line += f"{left // 60:>5.0f}:{left % 60:02.0f}"
        in_place = sys.stdout.isatty()
        print(f"\r{line}" if in_place else line, end="\n" if last or not in_place else "", flush=True)
        if rnn.iteration % 10_000 == 0:
            print(f"\n{rnn.predict(self.reader, self.reader.chars[0], 300)}\n", flush=True)
        if self.save:
            self.save(rnn)
        self.since = time.perf_counter()


def prepare(args):
    """The settings, the reader and the model of a run, new or resumed."""
    given = {name: value for name, value in vars(args).items() if name in HYPERPARAMETERS}
    settings = {name: default for name, (default, _) in HYPERPARAMETERS.items()}
    if args.resume:
        rnn, about = load_checkpoint(args.checkpoint)
        settings = about["settings"]
        for name in sorted(given.keys() - {"max_iters", "threshold"}):
            if given[name] != settings[name]:
                raise ValueError(
                    f"{args.checkpoint} was trained with {name} {settings[name]}, not {given[name]}"
                )
    settings = {**settings, **given}
    require_sizes(max_iters=settings["max_iters"])
    if not settings["threshold"] >= 0:
        raise ValueError(f"threshold must be zero or a positive number, not {settings['threshold']}")

    reader = DataReader(args.text, settings["seq_length"], settings["batch_size"], settings["val_fraction"])
    if not args.resume:
        return settings, reader, new_model(reader.vocab_size, settings)
    if ("".join(reader.chars), text_mark(reader)) != (about["chars"], about["text"]):
        raise ValueError(f"{args.checkpoint} was trained on another text than {args.text}")
    reader.position = about["position"]
    return settings, reader, rnn


def train_command(args):
    """Train on a text, with all that belongs to a run: checkpoint, log, plot, and a clean end on Ctrl-C."""
    outputs = [path for path in (args.checkpoint, args.log, args.plot) if path is not None]
    for path in outputs:
        if not os.path.basename(path):
            raise ValueError(f"{path!r} cannot be written: it names no file")
        if os.path.exists(path) and not os.path.isfile(path):
            raise ValueError(f"{path} cannot be written: it is a folder or a device")
        if not os.access(Path(path).resolve().parent, os.W_OK):
            raise ValueError(f"{path} cannot be written: its folder is missing or read-only")
        if [os.path.realpath(other) for other in (args.text, *outputs)].count(os.path.realpath(path)) > 1:
            raise ValueError(f"{path} is named twice: what is read and each file that is written must differ")
    if args.plot and not args.plot.lower().endswith(".png"):
        raise ValueError(f"{args.plot} cannot be drawn: the picture is a PNG, and its name must end in .png")
    pyplot = import_pyplot() if args.plot else None
    settings, reader, rnn = prepare(args)

    V, held_out, length = rnn.vocab_size, len(reader.val_ids), len(reader.train_ids) + len(reader.val_ids)
    print(f"{Path(args.text).name}: {length:,} characters, {V} of them distinct")
    if held_out:
        print(f"training on the first {length - held_out:,}, validation on the last {held_out:,}")
    elif settings["val_fraction"]:
        print("too short to hold any of it out: training without validation")
    print(f"{rnn.hidden_size} hidden units, {len(rnn.theta):,} parameters")
    print(f"blind guessing costs log({V}) = {math.log(V):.3f} nats = {math.log2(V):.3f} bits per character")
    if args.resume:
        print(f"going on with {args.checkpoint} after iteration {rnn.iteration:,}")
    else:
        if os.path.exists(args.checkpoint):
            write_whole(f"{args.checkpoint}.old", Path(args.checkpoint).read_bytes())
            print(f"{args.checkpoint} was there already: kept as {args.checkpoint}.old")
        print(f"before training it writes {rnn.predict(reader, reader.chars[0], 50)!r}")
    print(flush=True)

    def save(rnn):
        save_checkpoint(args.checkpoint, rnn, reader, settings)
        if args.log:
            write_log(args.log, rnn.history)

    stop = []  # signals that came in: the iteration under way is finished first; the same signal again ends at once
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: (stop.append(number), signal.signal(number, signal.SIG_DFL)))
    limits = settings["max_iters"], settings["threshold"]
    rnn.train(reader, *limits, Progress(reader, *limits, save), stop=stop)
    if not rnn.iteration:
        if stop:
            print("stopped before the first iteration: nothing is saved", flush=True)
            return 128 + stop[0]
        raise ValueError(
            f"nothing to train: the smooth loss starts at {rnn.smooth_loss:.2f}, under threshold {limits[1]}"
        )
    if stop:
        save(rnn)
        files = [f"--{name}={path}" for name, path in (("log", args.log), ("plot", args.plot)) if path]
        command = shlex.join(
            [sys.argv[0], "train", args.text, "--checkpoint", args.checkpoint, *files, "--resume"]
        )
        print(f"\nstopped after iteration {rnn.iteration:,}; to go on:  python {command}", flush=True)
        return 128 + stop[0]
    if args.log:
        write_log(args.log, rnn.history)
    if rnn.best_theta is not None:
        nats, train_nats = rnn.best_loss, rnn.smooth_loss / rnn.seq_length
        print(
            f"\nvalidation loss {nats:.4f} nats ({nats / math.log(2):.4f} bits) per character, the best of the run:"
        )
        print(
            f"as unsure as between {math.exp(nats):.1f} equally likely characters; blind guessing is between {V}"
        )
        if nats > 1.25 * train_nats:
            hint = "being half known by heart: try fewer --max-iters next, or a longer text"
        else:
            hint = "with more to learn: try more --max-iters next, or twice the --hidden-size at half the --learning-rate"
        print(f"its own text costs it {train_nats:.3f} nats, {hint}")
        rnn.theta[:] = rnn.best_theta
    print(f"\n{rnn.predict(reader, reader.chars[0], 300, temperature=0.7)}\n")
    if pyplot:
        plot_history(pyplot, args.plot, rnn.history)
        print(f"loss curves in {args.plot}")
    command = shlex.join([sys.argv[0], "sample", args.checkpoint, "--length", "1000", "--temperature", "0.7"])
    print(f"saved in {args.checkpoint}; for more text:  python {command}")
    return 0


def write_log(path, history):
    """Write the rows of history as CSV, with an empty field where nothing was validated."""
    rows = [[int(row[0]), *("" if math.isnan(value) else value for value in row[1:])] for row in history]
    file = io.StringIO()
    csv.writer(file).writerows([HISTORY, *rows])
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


def plot_history(pyplot, path, history):
    """Draw the training and validation loss over the iterations."""
    iteration, _, train_nats, val_nats = np.array(history).T
    figure, axes = pyplot.subplots(figsize=(8, 5))
    axes.plot(iteration, train_nats, label="training (moving average)")
    validated = ~np.isnan(val_nats)
    axes.plot(iteration[validated], val_nats[validated], "o-", label="validation")
    axes.set(xlabel="iteration", ylabel="loss (nats per character)")
    axes.legend()
    axes.grid(alpha=0.3)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=150)
    write_whole(path, picture.getvalue())


def sample_command(args):
    """Write the start text and what the model makes of it, each character as it is drawn."""
    rnn, about = load_checkpoint(args.checkpoint)
    if rnn.best_theta is not None:
        rnn.theta[:] = rnn.best_theta
    require_sizes(length=args.length)
    require_seed(args.seed)
    rnn.rng = np.random.default_rng(args.seed)
    start = about["chars"][0] if args.start is None else args.start
    if args.start_file:
        raw = sys.stdin.buffer.read() if args.start_file == "-" else Path(args.start_file).read_bytes()
        try:
            start = raw.decode("utf-8-sig").replace("\r\n", "\n")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{args.start_file} is not UTF-8 text: byte {error.start} is 0x{raw[error.start]:02x}"
            ) from None
    ixs = encode(start, {char: ix for ix, char in enumerate(about["chars"])})
    characters = (about["chars"][ix] for ix in rnn.generate(ixs, args.temperature))
    first = next(characters)  # whatever is wrong is told before anything is written
    for text in itertools.chain([start, first], itertools.islice(characters, args.length - 1), ["\n"]):
        print(text, end="", flush=True)
    return 0


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line."""

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message}; see  python {self.prog} --help\n")


def parse(argv):
    """The arguments of the command line; without a command, those of train."""
    parser = Parser(
        prog="char_rnn.py",
        description="A character-level recurrent neural network, from scratch in NumPy.",
        epilog="What can be set is listed by:  python char_rnn.py train --help",
    )
    commands = parser.add_subparsers(title="commands", metavar="{train,sample}", required=True)

    train = commands.add_parser("train", help="learn from a text (the command when none is given)")
    train.set_defaults(run=train_command)
    train.add_argument(
        "text", nargs="?", default=str(DATA), help="UTF-8 text file (default: data/fables.txt)"
    )
    for name, (default, what) in HYPERPARAMETERS.items():
        train.add_argument(
            "--" + name.replace("_", "-"),
            type=type(default),
            default=argparse.SUPPRESS,
            metavar={int: "N", float: "X", str: "NAME"}[type(default)],
            help=f"{what} (default: {default})",
        )
    train.add_argument(
        "--checkpoint", default=CHECKPOINT, metavar="FILE", help="where to save (default: %(default)s)"
    )
    train.add_argument(
        "--resume", action="store_true", help="go on exactly where the checkpoint was saved last"
    )
    train.add_argument("--log", metavar="CSV", help="write " + ", ".join(HISTORY) + " to this file")
    train.add_argument("--plot", metavar="PNG", help="draw the loss curves in this file (needs matplotlib)")

    sample = commands.add_parser("sample", help="write text with a trained model")
    sample.set_defaults(run=sample_command)
    sample.add_argument(
        "checkpoint", nargs="?", default=CHECKPOINT, help="checkpoint to read (default: %(default)s)"
    )
    start = sample.add_mutually_exclusive_group()
    start.add_argument("--start", metavar="TEXT", help="text to go on from")
    start.add_argument(
        "--start-file", metavar="FILE", help="file with the text to go on from; - is standard input"
    )
    sample.add_argument(
        "--length", type=int, default=400, metavar="N", help="characters to draw (default: %(default)s)"
    )
    sample.add_argument(
        "--temperature",
        type=float,
        default=1.0,
        metavar="X",
        help="under 1 is more careful, over 1 bolder, 0 always the likeliest (default: %(default)s)",
    )
    sample.add_argument(
        "--seed", type=int, metavar="N", help="seed of the random numbers (default: another each time)"
    )

    if not argv or argv[0] not in ("train", "sample", "-h", "--help"):
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
        return args.run(args)
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError, FloatingPointError, MemoryError) as error:
        text = (
            f"{error.filename}: {error.strerror}"
            if isinstance(error, OSError) and error.filename
            else str(error)
        )
        print(f"char_rnn.py: error: {text}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
