# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy>=1.26"]
# ///
# SPDX-License-Identifier: MIT-0
"""A character-level recurrent neural network, from scratch in NumPy.

    python char_rnn.py                              learn to write fables, in a quarter of a minute
    python char_rnn.py train my.txt                 learn from your own text
    python char_rnn.py resume                       go on with a run that was stopped
    python char_rnn.py sample                       write new text with what was learned
    python char_rnn.py test char_rnn.npz other.txt  measure how well it predicts another text

One hidden layer reads a text character by character (x_t, one-hot) and says how likely each next
one is (y_t):

    a_t = tanh(n_t)       n_t = Waa a_{t-1} + Wax x_t + ba
    y_t = softmax(z_t)    z_t = Wya a_t + by
    L   = - sum over t of log y_t[target_t], averaged over the streams

n_t and z_t are what goes into the tanh and into the softmax (pre-activation and logits). Shapes,
everywhere below: T steps, B streams (pieces of the text that are read side by side), H hidden
units, V characters.
"""

import argparse
import io
import json
import math
import os
import secrets
import shlex
import shutil
import signal
import sys
import time
import zlib
from collections import Counter, defaultdict
from copy import deepcopy
from dataclasses import InitVar, asdict, dataclass, field
from functools import partial
from glob import glob
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

# One thread: on a busy machine, threads that wait for each other are 10 to 50 times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

# Speed only: a large product maps the memory that BLAS works in, or every later product is up to
# 2.2 times slower on a virtual machine; and when its 12 MB are freed, C's library learns to keep
# freed memory for the next arrays, up to 1.5 times faster.
np.ones((64, 384), np.float32) @ np.ones((384, 8192), np.float32)


class UserError(ValueError):
    """What a user can mend: the command line tells it in one line. All else is a bug."""


# --------------------------------------------------------------------------------------------------
# Text: from a file to batches of character indices


@dataclass
class DataReader:
    """Reads a UTF-8 text and deals it out as batches of character indices.

    chars are the V distinct characters, sorted, unless they are given. The last val_fraction of the
    text is held out in val_ids (nothing, if the text is too short). The rest is cut into batch_size
    stretches of equal length, the streams. All are read at the same time, each from its start to
    its end, seq_length characters a batch; the last batch of a pass may be shorter.
    Raises UserError for a text that is not UTF-8, is too short, has fewer than 2 characters or
    others than are given, or is another than that of a checksum.
    """

    path: str
    seq_length: int
    batch_size: int = 1
    val_fraction: float = 0.1
    chars: list = None
    shuffle_lines: bool = False
    checksum: int = None

    def __post_init__(self):
        self.path = str(self.path)
        text = read_text(self.path)
        checksum = zlib.crc32(text.encode())
        if self.checksum not in (None, checksum):
            raise UserError(f"{self.path} is not the text that the network was trained on")
        self.checksum = checksum
        if self.shuffle_lines:
            text = shuffled(text)
        points = code_points(text)
        self.chars = self.chars or distinct_chars(points)
        self.vocab_size = len(self.chars)
        if self.vocab_size < 2 or len(text) <= self.batch_size:
            raise UserError(
                f"{self.path} needs more than {self.batch_size} characters, 2 of them distinct"
            )

        ids = indices_of(points, self.chars)
        if not 0 <= self.val_fraction < 1:
            raise UserError(f"val_fraction is at least 0 and less than 1, not {self.val_fraction}")
        end = len(ids) - int(len(ids) * self.val_fraction)
        if end <= self.batch_size or len(ids) - end < 2:
            end = len(ids)  # one of both parts were too short
        self.train_ids = ids[:end]
        self.val_ids = ids[end:]
        self.inputs, self.targets = side_by_side(self.train_ids, self.batch_size)
        self.batches = math.ceil(len(self.inputs) / self.seq_length)  # in a pass over the text
        self.batch = 0  # the next one; before batch 0 the hidden state is zero

    def next_batch(self):
        """The next (inputs, targets), each (T, B): the targets are one character later."""
        start = self.batch * self.seq_length
        steps = slice(start, start + self.seq_length)
        self.batch = (self.batch + 1) % self.batches
        return self.inputs[steps].astype(np.intp), self.targets[steps].astype(np.intp)


def read_text(path):
    """The text of a UTF-8 file, without a byte-order mark, its line ends made newlines."""
    try:
        with open(0 if path == "-" else path, encoding="utf-8-sig") as file:  # 0: standard input
            text = file.read()
        if "\0" in text:
            raise ValueError("it has zero bytes")
    except ValueError as error:
        raise UserError(
            f"{path} is not UTF-8 text: perhaps it is UTF-16 or cp1252, and iconv -f UTF-16 -t "
            f"UTF-8 makes UTF-8 of it ({error})"
        ) from None
    return text


def shuffled(text):
    """The lines of a text in another order, always the same one; each ends in a newline."""
    lines = text.removesuffix("\n").split("\n")
    np.random.default_rng(0).shuffle(lines)
    return "\n".join(lines) + "\n"


def code_points(text):
    """The number that Unicode gives to each character of a text."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def distinct_chars(points):
    """The characters that there are among some code points, sorted."""
    is_there = np.zeros(sys.maxunicode + 1, bool)
    is_there[points] = True
    return [chr(point) for point in np.flatnonzero(is_there)]


def indices_of(points, chars):
    """The index into chars of each code point; UserError names those that chars has not."""
    unknown = len(chars)
    index = np.full(sys.maxunicode + 1, unknown, np.min_scalar_type(unknown))  # by code point
    index[[ord(char) for char in chars]] = np.arange(unknown)
    ids = index[points]
    if ids.max(initial=0) == unknown:
        raise UserError(f"the model never saw {names_of(distinct_chars(points[ids == unknown]))}")
    return ids


def encode(text, chars):
    """The characters of a text as an array of indices into chars, as indices_of gives them."""
    return indices_of(code_points(text), chars)


def encode_known(text, chars):
    """A text as indices into chars, without the characters that are not among them."""
    return encode("".join(char for char in text if char in chars), chars)


def side_by_side(ids, streams):
    """Inputs and targets, (steps, streams): equal stretches of a text, each in a column.

    A target is the character after its input. What does not fill a step at the end is left out.
    """
    steps = (len(ids) - 1) // streams
    used = streams * steps
    inputs = ids[:used].reshape(streams, steps).T
    targets = ids[1 : used + 1].reshape(streams, steps).T
    return inputs, targets


def in_streams(ids):
    """Inputs and targets of a text to score: up to 64 streams of at least 2,000 characters."""
    return side_by_side(ids, max(1, min(64, len(ids) // 2000)))


def names_of(chars):
    """Some characters as one can read them: 'é' '\\t'."""
    return " ".join(map(repr, sorted(chars)))[:200]


def start_char(chars):
    """What a new text is begun after: a newline, where there is one."""
    return "\n" if "\n" in chars else chars[0]


# --------------------------------------------------------------------------------------------------
# Mathematics: softmax, the network with its training, and a check of its gradients

TEMPERATURE = 0.7  # of samples: what is likely is drawn a little more often than it was predicted


def softmax(x, axis=-1):
    """exp(x_i) / sum over j of exp(x_j); the maximum is subtracted first, against overflow."""
    x = np.asarray(x) * 1.0  # lists and whole numbers become floats
    exp = np.exp(x - x.max(axis=axis, keepdims=True))
    return exp / exp.sum(axis=axis, keepdims=True)


class RNN:
    """A one-layer tanh RNN with a softmax over the next character.

    It holds its sizes, its settings and five arrays: Wax (H, V), Waa (H, H), Wya (V, H), ba (H,),
    by (V,). Where its training stands is kept in a Run. Without a learning rate it takes the one
    of its optimiser in OPTIMIZERS. seq_length is kept for the record: batches are as long as the
    reader makes them. Take dtype=np.float64 to check gradients. Raises UserError for a learning
    rate that cannot be.
    """

    def __init__(
        self,
        hidden_size,
        vocab_size,
        seq_length,
        learning_rate=None,
        optimizer="adam",
        seed=0,
        dtype=np.float32,
    ):
        if learning_rate is None:
            _, learning_rate = OPTIMIZERS[optimizer]
        if not 0 < learning_rate < math.inf:
            raise UserError(f"learning_rate must be a positive number, not {learning_rate}")
        self.hidden_size = hidden_size
        self.vocab_size = vocab_size
        self.seq_length = seq_length
        self.learning_rate = learning_rate
        self.optimizer = optimizer
        self.dtype = np.dtype(dtype).name

        # Wax has a standard deviation of 3: states after different characters start far apart. On
        # the fables that is 0.02 nats better than one of 1, after as many seconds.
        # Waa is orthogonal, the Q of QR: by itself it keeps the length of a, and of gradients.
        # Wya / sqrt(H): as each a is at most 1 in size, z has variance 1 at most.
        H, V = hidden_size, vocab_size
        rng = np.random.default_rng(seed)
        self.Wax = (3 * rng.standard_normal((H, V))).astype(dtype)
        self.Waa = np.linalg.qr(rng.standard_normal((H, H)))[0].astype(dtype)
        self.Wya = (rng.standard_normal((V, H)) / math.sqrt(H)).astype(dtype)
        self.ba = np.zeros(H, dtype)
        self.by = np.zeros(V, dtype)

    @property
    def state_size(self):
        """The length of what is carried from step to step: H here, 2 H in an LSTM."""
        return self.hidden_size

    def parameters(self):
        """A dict of the parameters by name: the arrays themselves, not copies."""
        return {name: getattr(self, name) for name in ("Wax", "Waa", "Wya", "ba", "by")}

    def use(self, values):
        """Give every parameter the values that stand under its name in a dict, such as run.best."""
        for name, w in self.parameters().items():
            w[...] = values[name]

    def forward(self, inputs, a_prev):
        """The hidden states, and how likely each character is to come next, at every step.

            a_t = tanh(Waa a_{t-1} + Wax x_t + ba)        y_t = softmax(Wya a_t + by)

        inputs are indices of characters, (T, B) with a_prev (B, H), or a single sequence, (T,) with
        (H,). Returns a (T+1, B, H) and y_pred (T, B, V), or both without B. a[0] is a_prev, and
        a[t] is a_t for t = 1 to T; Python counts from 0, so that inputs[0] is x_1 and y_pred[0] is
        y_1. Raises UserError for anything but indices.
        """
        inputs = self.as_indices(inputs)
        a = np.empty((len(inputs) + 1, *inputs.shape[1:], self.hidden_size), self.dtype)
        a[0] = a_prev
        from_x = self.Wax.T[inputs] + self.ba  # x_t is one-hot: Wax x_t is a column of Wax
        Waa_T = self.Waa.T.copy()  # row by row in memory: so BLAS multiplies up to twice as fast
        for t in range(len(inputs)):
            n = np.dot(a[t], Waa_T) + from_x[t]  # a row of a[t] is a stream
            np.tanh(n, out=a[t + 1])
        y_pred = softmax(self.logits(a[1:]))
        return a, y_pred

    def logits(self, a):
        """z_t = Wya a_t + by, for states a (..., H): (..., V)."""
        return a @ self.Wya.T + self.by

    def as_indices(self, characters):
        """Inputs or targets as an array, if they are indices of characters."""
        ids = np.asarray(characters)
        are_whole = ids.size and ids.ndim in (1, 2) and ids.dtype.kind in "iu"
        if not are_whole or ids.min() < 0 or ids.max() >= self.vocab_size:
            raise UserError(
                f"inputs and targets must be indices from 0 to {self.vocab_size - 1}, "
                f"(T, B) or (T,), not {ids.dtype} {ids.shape}: {ids!r:.60}"
            )
        return ids

    def one_hot(self, ids):
        """A 1 at each index and 0 elsewhere: (T, B) to (T, B, V)."""
        ones = np.asarray(ids)[..., None] == np.arange(self.vocab_size)
        return ones.astype(self.dtype)

    def loss(self, y_pred, targets):
        """The cross-entropy L = - sum over t of log y_t[target_t], averaged over streams, in nats.

        Raises UserError for targets that are no indices, and for y_pred that are no probabilities.
        """
        targets = self.as_indices(targets)
        rows = np.reshape(y_pred, (-1, self.vocab_size))
        y_target = rows[np.arange(len(rows)), targets.ravel()]
        if not 0 <= y_target.min() <= y_target.max() <= 1:  # nan is not, either
            raise UserError(
                f"y_pred has {y_target.min()}, which is no probability: try a learning rate below "
                f"{self.learning_rate:g}; of logits, take the softmax"
            )
        smallest = np.finfo(self.dtype).tiny  # so that log never meets a probability rounded to 0
        nats = -np.log(np.maximum(y_target, smallest))
        return float(nats.sum()) / streams_in(targets)

    def backward(self, inputs, a, y_pred, targets):
        """The gradients of loss by truncated backpropagation through time, for each parameter.

        dx means dL/dx, and ' is the transpose. At one step of one stream, the loss depends on z by
            dL/dy_i = -1/y_i where i = target, else 0     dy_i/dz_j = y_i (1[i = j] - y_j)
            so that dL/dz_j = y_j - 1[j = target]         (1[...] is 1 where that is so, else 0)
        From there through the layers, and from the last step to the first:
            dz_t = (y_t - onehot(target_t)) / B           the mean over streams
            da_t = Wya' dz_t + Waa' dn_{t+1}              from this output and from the next step
            dn_t = (1 - a_t^2) da_t                       through the tanh, entry by entry
            dWya = sum dz_t a_t'      dby = sum dz_t      sums over steps and streams
            dWax = sum dn_t x_t'      dba = sum dn_t      dWaa = sum dn_t a_{t-1}'
        Truncated: a_prev counts as a constant, no gradient reaches the batch before. In the code
        each vector is a row, so that Wya' dz_t is dz[t] @ Wya. Python counts from 0: dn[t] is
        dn_{t+1}. np.dot is the same product, which costs less for small arrays.
        Raises UserError for targets that are no indices.
        """
        a = np.asarray(a)
        targets = self.as_indices(targets)
        dz = (y_pred - self.one_hot(targets)) / streams_in(targets)
        from_z = dz @ self.Wya
        slope = 1 - a[1:] ** 2
        dn = np.zeros_like(a)  # one step longer: after the last one there is nothing, dn_{T+1} = 0
        for t in reversed(range(len(inputs))):
            dn[t] = slope[t] * (from_z[t] + np.dot(dn[t + 1], self.Waa))
        dn = dn[:-1]
        all_steps = tuple(range(dn.ndim - 1))  # the axes T and B
        return {
            "Wax": sum_outer(dn, self.one_hot(inputs)),
            "Waa": sum_outer(dn, a[:-1]),
            "Wya": sum_outer(dz, a[1:]),
            "ba": dn.sum(axis=all_steps),
            "by": dz.sum(axis=all_steps),
        }

    def update(self, grads, run, scale=1.0):
        """One step of the optimiser at learning_rate * scale; gradients are clipped to [-5, 5].

        Raises UserError for a gradient that has not the shape of its parameter.
        """
        run.iteration += 1
        rule, _ = OPTIMIZERS[self.optimizer]
        rate = self.learning_rate * scale
        for name, w in self.parameters().items():
            g = np.asarray(grads[name], self.dtype).clip(-5, 5)  # against exploding gradients
            if g.shape != w.shape:
                raise UserError(f"the gradient of {name} has shape {g.shape}, not {w.shape}")
            step, run.m[name], run.v[name] = rule(g, run.m[name], run.v[name], run.iteration, rate)
            w -= step  # in place: this changes self.Wax and so on

    @np.errstate(over="ignore", invalid="ignore")  # loss tells when it is not a number
    def train(self, reader, max_iters=None, threshold=None, report=None, run=None):
        """The nine steps, until max_iters or a smooth loss of threshold; returns the run.

        A run that is passed in goes on where it stands; without one, a new run starts from the
        weights that are there. Both ends are the run's own unless they are given. It validates at
        iterations 0, 100, 250, every run.eval_interval and the last. It calls report(run) at 0 and
        after every iteration; by default that prints the rows. The network ends with the weights
        that it reached: rnn.use(run.best) takes the best. Raises UserError as loss does.
        """
        run = run or Run(self)
        if max_iters is not None:
            run.max_iters = max_iters
        if threshold is not None:
            run.threshold = threshold
        report = report or partial(print_progress, self, reader)
        reader.batch = run.iteration % reader.batches  # the next one, where the run stands
        started = time.perf_counter() - run.seconds
        if not run.history:
            run.validate(self, reader)
            report(run)
        while not run.ended():  # step 9: repeat
            # Step 1: a zero state at the start of the text, and where the streams are others.
            if reader.batch == 0 or len(run.a_prev) != reader.batch_size:
                run.a_prev = np.zeros((reader.batch_size, self.state_size))
            inputs, targets = reader.next_batch()  # step 2: a batch
            a, y_pred = self.forward(inputs, run.a_prev)  # step 3: forward
            loss = self.loss(y_pred, targets)
            grads = self.backward(inputs, a, y_pred, targets)  # step 4: backward
            self.update(grads, run, schedule(run.iteration, run.max_iters))  # step 5: update
            # Step 6: the loss for each character. It is that of before the update, from step 3: by
            # weights that have not seen the batch, and without a second forward pass.
            run.losses.append(loss / len(inputs))
            run.smooth_loss += 0.01 * (run.losses[-1] - run.smooth_loss)
            run.a_prev = a[-1]  # step 7: the state that the next batch starts from
            run.seconds = time.perf_counter() - started
            if run.row_is_due():
                run.validate(self, reader)
            report(run)  # step 8: print progress
        return run

    def evaluate(self, ids):
        """The mean loss per character, in nats, of a text given as indices.

        A long text is read as up to 64 streams of at least 2,000 characters, each from a zero
        state. Raises UserError for a text of fewer than 2 characters.
        """
        if len(ids) < 2:
            raise UserError(f"nothing to predict in {len(ids)} character(s): take 2 or more")
        inputs, targets = in_streams(ids)
        a_prev = np.zeros((inputs.shape[1], self.state_size))
        nats = 0.0
        for start in range(0, len(inputs), 100):  # in pieces, to save memory
            piece = slice(start, start + 100)
            a, y_pred = self.forward(inputs[piece], a_prev)
            nats += self.loss(y_pred, targets[piece])
            a_prev = a[-1]
        return nats / len(inputs)

    def draw(self, ids, a_prev, temperature, seed):
        """Generate indices without end: ids are read first, from the state a_prev (H,).

        Each new index is drawn from softmax(z_t / temperature) and is the next input. A temperature
        under 1 makes likely characters likelier; 0 always takes the likeliest. Raises UserError for
        a temperature below 0, and for weights that have diverged.
        """
        if not 0 <= temperature < math.inf:
            raise UserError(f"temperature must be a number from 0 on, not {temperature}")
        rng = np.random.default_rng(seed)
        while True:
            a, _ = self.forward(ids, a_prev)
            a_prev = a[-1]
            z = self.logits(a_prev).astype(np.float64)  # the softmax of forward has no temperature
            if not np.isfinite(z).all():
                raise UserError("the weights are no finite numbers: try a lower learning rate")
            y = softmax(z / max(temperature, 1e-6))  # at 0 the likeliest one wins
            ids = [int(rng.choice(self.vocab_size, p=y))]
            yield ids[0]

    def sample(self, a_prev, seed_ix, n, temperature=TEMPERATURE, seed=None):
        """A list of n indices that follow seed_ix; a seed gives the same ones each time."""
        return list(islice(self.draw([seed_ix], a_prev, temperature, seed), n))

    def predict(self, reader, start, n, temperature=TEMPERATURE, seed=None):
        """The text start, or none, and n new characters.

        Without a start it is begun as after a newline. Raises UserError for a character of start
        that is not in reader.chars.
        """
        ids = encode(start or start_char(reader.chars), reader.chars)
        drawn = self.draw(ids, np.zeros(self.state_size), temperature, seed)
        return start + "".join(reader.chars[ix] for ix in islice(drawn, n))


def streams_in(ids):
    """B, of indices (T, B); 1 for a single sequence, (T,)."""
    return 1 if ids.ndim == 1 else ids.shape[1]


def sum_outer(u, v):
    """The sum of u_t v_t' over all steps and streams: (T, B, I) and (T, B, J) give (I, J).

    Put below each other, the rows u_t make a matrix (T B, I) and the rows v_t a matrix (T B, J):
    the product of the first, transposed, with the second is that sum.
    """
    return u.reshape(-1, u.shape[-1]).T @ v.reshape(-1, v.shape[-1])


def check_gradients(rnn, inputs, targets, change=1e-5):
    """How far backward is from central differences, by the name of each parameter.

        dL/dw is about (L(w + change) - L(w - change)) / (2 change)

    It is the largest difference, relative to the largest gradient of that parameter: below 1e-6
    backward is right, and above 1e-3 it is wrong. The first state is random, so that all gradients
    count from the first step on. Raises UserError for a network that is not in
    float64, and where backward and parameters do not have the same names.
    """
    if rnn.dtype != "float64":
        raise UserError(f"check_gradients needs a network with dtype=np.float64, not {rnn.dtype}")
    shape = (*np.shape(inputs)[1:], rnn.state_size)
    a_prev = np.random.default_rng(0).standard_normal(shape)
    a, y_pred = rnn.forward(inputs, a_prev)
    grads = rnn.backward(inputs, a, y_pred, targets)
    if odd := grads.keys() ^ rnn.parameters().keys():
        raise UserError(f"in one of parameters() and backward() only: {', '.join(sorted(odd))}")

    def loss():
        _, y_pred = rnn.forward(inputs, a_prev)
        return rnn.loss(y_pred, targets)

    differences = {}
    for name, w in rnn.parameters().items():
        measured = np.zeros_like(w)
        for place in np.ndindex(w.shape):
            value = w[place]
            w[place] = value + change
            plus = loss()
            w[place] = value - change
            minus = loss()
            measured[place] = (plus - minus) / (2 * change)
            w[place] = value
        largest = max(np.abs(measured).max(), change)  # in case all of them are 0
        differences[name] = float(np.abs(grads[name] - measured).max() / largest)
    return differences


# --------------------------------------------------------------------------------------------------
# Optimisers: from a gradient g to the step that is subtracted, and the moments m and v after it


def adam(g, m, v, t, learning_rate, beta1=0.9, beta2=0.999, epsilon=1e-8):
    """The t-th step of Adam (Kingma and Ba, 2015): m and v are moving means of g and of g^2."""
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g**2
    m_hat = m / (1 - beta1**t)  # both moments started at zero: this corrects for it
    v_hat = v / (1 - beta2**t)
    return learning_rate * m_hat / (np.sqrt(v_hat) + epsilon), m, v


def adagrad(g, m, v, t, learning_rate, epsilon=1e-10):
    """A step of Adagrad (Duchi, Hazan and Singer, 2011): v is the sum of all g^2 so far."""
    v = v + g**2
    return learning_rate * g / (np.sqrt(v) + epsilon), m, v


def sgd(g, m, v, t, learning_rate):
    """A step of stochastic gradient descent, which does not use m, v and t."""
    return learning_rate * g, m, v


# Each rule with the learning rate that did best on the fables.
OPTIMIZERS = {"adam": (adam, 5e-3), "adagrad": (adagrad, 0.1), "sgd": (sgd, 0.06)}


def schedule(iteration, max_iters):
    """The share of the learning rate: a linear warm-up, times half a cosine from 1 down to 0.

    The warm-up takes 100 iterations, or a tenth of a short run.
    """
    warm_up = min(1, (iteration + 1) / min(100, max_iters / 10))
    return warm_up * (1 + math.cos(math.pi * iteration / max_iters)) / 2


# --------------------------------------------------------------------------------------------------
# Run: where a training stands, and what is printed and drawn of it

HEADER = "iteration  smooth  train  valid s left  sample"


@dataclass
class Run:
    """Where the training of a network stands: everything but the network, Run(rnn) at first.

    The best weights are those with the lowest validation loss, or the latest if nothing is held
    out. Losses are in nats per character.
    """

    rnn: InitVar
    iteration: int = 0  # how many updates
    seconds: float = 0.0  # since the first, with rows and reports, without pauses
    losses: list = field(default_factory=list)  # of each iteration
    smooth_loss: float = None  # their moving average, which starts at that of guessing
    history: list = field(default_factory=list)  # rows [iteration, training, validation loss]
    best_loss: float = math.inf
    best_iteration: int = 0
    max_iters: int = 2500  # where the run ends
    threshold: float = 0.0  # or at this smooth loss
    eval_interval: int = 500  # iterations from row to row
    plot: str = ""  # the full name of the picture that it has drawn

    def __post_init__(self, rnn):
        self.guessing = math.log(rnn.vocab_size)  # the loss of V characters that are equally likely
        self.smooth_loss = self.smooth_loss or self.guessing
        self.best = deepcopy(rnn.parameters())
        self.m = {name: np.zeros_like(w) for name, w in self.best.items()}  # of the optimiser
        self.v = deepcopy(self.m)
        self.a_prev = np.zeros(0)  # (B, H), the state before the next batch; none has been read yet

    def validate(self, rnn, reader):
        """Add a row to history, and keep the weights if they are the best so far."""
        last_row = self.history[-1][0] if self.history else 0
        train_loss = np.mean(self.losses[last_row:] or math.nan)  # nan before the first
        val_ids = reader.val_ids[:100_000]
        val_loss = rnn.evaluate(val_ids) if len(val_ids) else math.nan
        if val_loss < self.best_loss or len(val_ids) == 0:
            self.best = deepcopy(rnn.parameters())
            self.best_loss = val_loss
            self.best_iteration = self.iteration
        self.history.append([self.iteration, train_loss, val_loss])

    def ended(self):
        """True after max_iters iterations, or when the smooth loss has fallen to threshold."""
        return self.iteration >= self.max_iters or self.smooth_loss <= self.threshold

    def row_is_due(self):
        """True at iterations 100 and 250, at every eval_interval-th, and at the last."""
        in_time = self.iteration % self.eval_interval == 0
        return in_time or self.iteration in (100, 250) or self.ended()


def counting(train_ids, val_ids, vocab_size, longest=3):
    """The loss of counting what follows the last 1, 2, ... longest characters, in nats: a list.

        p(c after h) = (n(hc) + d(h) p(c after h without its first)) / (n(h) + d(h))

    n(hc) is how often c follows the string h in the training part, n(h) how often anything does,
    and d(h) how many different characters do. Where long strings are rare the shorter ones fill in,
    down to 1/V (Witten and Bell, 1991). The loss is that of val_ids but for the first, which follow
    the training part. Of that, at most the last million characters are counted.
    """
    train = tuple(train_ids[-1_000_000:].tolist())
    followers = defaultdict(Counter)  # for each string h: how often each c follows
    for i in range(longest, len(train)):
        for length in range(longest + 1):
            followers[train[i - length : i]][train[i]] += 1

    text = train[-longest:] + tuple(val_ids.tolist())
    nats = np.zeros(longest + 1)
    for i in range(len(text) - len(val_ids) + 1, len(text)):
        p = 1 / vocab_size
        for length in range(longest + 1):  # of h
            n = followers[text[i - length : i]]
            d = len(n)
            if n:
                p = (n[text[i]] + d * p) / (n.total() + d)
            nats[length] -= math.log(p)
    return (nats[1:] / (len(val_ids) - 1)).tolist()


def print_heading(path, rnn, reader, run):
    """Print what is trained on what, how often it will be read, and where the run stands."""
    size = sum(w.size for w in run.best.values())
    print(
        f"{Path(reader.path).name}, {rnn.hidden_size} hidden units, {size:,} parameters\n"
        f"{len(reader.train_ids):,} characters to train on, read "
        f"{run.max_iters / reader.batches:.1f} times in {run.max_iters:,} iterations\n"
        f"{len(reader.val_ids):,} characters held out to validate\n"
        f"losses are in nats per character; guessing among {rnn.vocab_size} costs "
        f"{run.guessing:.3f}\n"
        f"saving in {path}\n"
    )
    if run.ended():
        print(f"the run has ended at iteration {run.iteration:,}, smooth {run.smooth_loss:.3f}")
    elif run.history:
        print(HEADER)


def print_progress(rnn, reader, run):
    """Print a row where a run has just validated, else, on a terminal, a line that is replaced."""
    each = run.seconds / (run.iteration or math.nan)  # not known before the first
    left = each * (run.max_iters - run.iteration)
    if run.row_is_due():
        iteration, train_loss, val_loss = run.history[-1]
        if iteration == 0:
            print(HEADER)
        losses = f"{run.smooth_loss:>8.3f}{train_loss:>7.3f}{val_loss:>7.3f}"
        numbers = f"{iteration:>9,}{losses}{left:>7,.0f}".replace("nan", "  -")
        text = rnn.predict(reader, "", 40, seed=0)
        print(f"{numbers}  {' '.join(text.split())}", flush=True)
    elif sys.stdout.isatty() and run.iteration % 10 == 0:
        line = f"{run.iteration:>9,}  loss {run.losses[-1]:.3f}  {left:,.0f} s left"
        print(f"{line:40}", end="\r", flush=True)


def print_result(path, rnn, reader, run):
    """Print how good the best weights are, beside what counting gives, and what they write."""
    rnn.use(run.best)
    nats = run.smooth_loss
    to_beat = run.guessing
    command = ["python", sys.argv[0], "sample", path]
    if len(reader.val_ids):
        val_ids = reader.val_ids[:1_000_000]
        nats = rnn.evaluate(val_ids)
        _, targets = in_streams(val_ids)
        scored = val_ids[: targets.size + 1]  # the first is only read
        counted = counting(reader.train_ids, scored, rnn.vocab_size)
        to_beat = min(to_beat, counted[0])
        print(
            f"\nvalidation loss {nats:.4f} nats per character, perplexity {math.exp(nats):.2f},\n"
            f"on {targets.size:,} of the characters held out, with the weights of iteration "
            f"{run.best_iteration:,};\ncounting what follows the last 1, 2 and 3 characters: "
            f"{counted[0]:.3f}, {counted[1]:.3f} and {counted[2]:.3f}"
        )
        if counted[0] > run.guessing:
            print("\nWhat is held out is unlike the rest of the text: try --shuffle-lines.")
    if nats >= to_beat:
        print(NOTHING_LEARNED)
        command += ["--last"]
    text = rnn.predict(reader, "", 300, seed=0)
    print(f"\n{text}\n\nfor more text:\n{shlex.join(command)}")


NOTHING_LEARNED = """
That is no better than guessing, or counting pairs of characters: nothing was learned that holds
for another text. Try --shuffle-lines if the end of the text is unlike the rest, a lower or a higher
--learning-rate, more --max-iters, or more text; check_gradients if the code was changed.
"""


def draw_picture(path, run):
    """Write a picture of the losses.

    UserError for a file that is there and that the run has not drawn itself, for an ending that
    matplotlib does not know, and where matplotlib is missing.
    """
    full_name = os.path.abspath(path)
    if os.path.lexists(path) and full_name != run.plot:
        raise UserError(f"--plot {path} is there, and no picture of this run: name another")
    picture = io.BytesIO()
    try:
        from matplotlib.figure import Figure

        axes = Figure(figsize=(8, 5), layout="constrained").subplots()
        iterations, train_losses, val_losses = np.reshape(run.history, (-1, 3)).T
        axes.plot(run.losses, "C0", linewidth=0.2, label="each iteration")
        axes.plot(iterations, train_losses, "C0o-", label="training, mean since the last point")
        axes.plot(iterations, val_losses, "C1o-", label="validation")
        axes.set(xlabel="iteration", ylabel="loss (nats per character)")
        axes.legend()
        axes.figure.savefig(picture, format=Path(path).suffix[1:])
    except (ImportError, ValueError) as error:
        raise UserError(f"--plot {path}: {error} (pip install matplotlib)") from error
    write_whole(path, picture.getvalue())
    run.plot = full_name


# --------------------------------------------------------------------------------------------------
# Checkpoint: all that sampling and an exact resume need, in one .npz file

# What it holds of the network, beside the arrays.
SETTINGS = ("hidden_size", "vocab_size", "seq_length", "learning_rate", "optimizer", "dtype")


def save_checkpoint(path, rnn, run, reader, replace=False):
    """Save a network, its run, and where its text is; returns the name of the file.

    It is the first free one of path, path-2, path-3, ..., and path itself with replace.
    """
    about = {
        "rnn": {name: getattr(rnn, name) for name in SETTINGS},
        "reader": asdict(reader),
        "run": asdict(run),
    }
    arrays = {}
    for name, w in rnn.parameters().items():
        arrays[name] = np.stack([w, run.best[name], run.m[name], run.v[name]])
    text = json.dumps(about, default=np.generic.item)  # numbers may be those of NumPy
    file = io.BytesIO()
    np.savez(file, about=text, a_prev=run.a_prev, **arrays)
    return write_whole(path, file.getvalue(), replace)


def load_checkpoint(path, model=RNN):
    """A network of a class, its run, and what is known of its text: about.chars, and so on.

    The network has the weights that it had reached: rnn.use(run.best) takes the best. To train on,
    DataReader(**vars(about)) reads the text again. Nothing in the file is executed. Raises
    UserError for a file that is damaged, of another kind, or of another class of network.
    """
    file = io.BytesIO(Path(path).read_bytes())
    try:
        loaded = np.load(file)
        if loaded.zip.testzip():  # dict would not see a changed shape
            raise ValueError("a checksum is wrong")
        arrays = dict(loaded)
        settings, of_reader, of_run = json.loads(str(arrays.pop("about"))).values()
    except Exception as error:  # damaged bytes can raise almost anything
        raise UserError(f"{path} is damaged, or no checkpoint of char_rnn.py: {error}") from error
    rnn = model(**settings)
    run = Run(rnn, **of_run)
    run.a_prev = arrays.pop("a_prev")
    if arrays.keys() != rnn.parameters().keys():
        raise UserError(
            f"{path} has {', '.join(arrays)}: it is of another network than {model.__name__}"
        )
    for name, w in rnn.parameters().items():
        w[...], run.best[name], run.m[name], run.v[name] = arrays[name]
    return rnn, run, SimpleNamespace(**of_reader)


def write_whole(path, data, replace=True):
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
            Path(path).touch(exist_ok=False)
            return path
        except FileExistsError:
            number += 1
            path = f"{stem}-{number}{ending}"


def newest():
    """The newest char_rnn*.npz in this folder; its name is printed."""
    path = max(glob("char_rnn*.npz"), key=os.path.getmtime, default=None)
    if not path:
        raise UserError("there is no char_rnn*.npz here: train first, or name a checkpoint")
    print(f"from {path}", file=sys.stderr)
    return path


# --------------------------------------------------------------------------------------------------
# Command line


def learn(rnn, reader, run, path, plot, replace=False):
    """Train until the end or Ctrl-C, saving at every row."""

    def save(replace=True):
        if plot:
            draw_picture(plot, run)
        return save_checkpoint(path, rnn, run, reader, replace)

    def report(run):
        if run.row_is_due():
            save()
        print_progress(rnn, reader, run)

    path = save(replace)  # what cannot be written shows at once
    try:
        print_heading(path, rnn, reader, run)
        rnn.train(reader, report=report, run=run)
        print_result(path, rnn, reader, run)
    except KeyboardInterrupt:
        print(f"\nstopped: all up to the last row is saved in {path}")
        if os.path.isfile(reader.path):  # a pipe cannot be read again
            command = shlex.join(["python", sys.argv[0], "resume", path])
            print(f"to go on:  {command}")
        raise


def train_command(args):
    """Start a new run on a text, in a checkpoint of its own."""
    chars = None
    if args.init_from:
        model, model_run, about = load_checkpoint(args.init_from)
        chars = about.chars
        args.hidden_size = model.hidden_size
    reader = DataReader(
        args.text, args.seq_length, args.batch_size, args.val_fraction, chars, args.shuffle_lines
    )
    rnn = RNN(
        args.hidden_size,
        reader.vocab_size,
        args.seq_length,
        args.learning_rate,
        args.optimizer,
        args.seed,
    )
    if chars:
        rnn.use(model_run.best)
    run = Run(
        rnn,
        max_iters=args.max_iters,
        threshold=args.threshold,
        eval_interval=args.eval_interval,
    )
    learn(rnn, reader, run, args.checkpoint, args.plot)


def resume_command(args):
    """Go on with the run of a checkpoint as if it had not been stopped, or to more iterations."""
    path = args.checkpoint or newest()
    if os.path.islink(path):
        path = os.path.realpath(path)
    rnn, run, about = load_checkpoint(path)
    about.path = args.text or about.path
    reader = DataReader(**vars(about))
    run.max_iters = args.max_iters or run.max_iters
    if run.max_iters < run.iteration:
        raise UserError(f"the run is at iteration {run.iteration}: {args.max_iters} is too few")
    learn(rnn, reader, run, path, args.plot, replace=True)


def trained(args):
    """The network of a checkpoint, with its best or its last weights, and what its text is."""
    rnn, run, about = load_checkpoint(args.checkpoint or newest())
    if not args.last:
        rnn.use(run.best)
    return rnn, about


def sample_command(args):
    """Print new text as it is drawn: so many characters after a start, or so many lines."""
    rnn, about = trained(args)
    ids = encode(start_char(about.chars) + args.start, about.chars)
    end = "\n" if args.lines else ""
    rng = np.random.default_rng(args.seed)
    for _ in range(args.lines or 1):
        line = args.start
        print(line, end="")
        drawn = rnn.draw(ids, np.zeros(rnn.state_size), args.temperature, rng)
        for ix in islice(drawn, args.length):
            char = about.chars[ix]
            if char != end:
                line += char
                print(char, end="", flush=True)
            elif line:  # an empty one does not count
                break
        print()


def test_command(args):
    """Print how well a model predicts a text, as a whole or line by line."""
    rnn, about = trained(args)
    text = read_text(args.text)
    if zlib.crc32(text.encode()) == about.checksum:
        print("the model was trained on this text", file=sys.stderr)
    if args.lines:
        score_lines(rnn, about.chars, text)
        return
    if unknown := set(text) - set(about.chars):
        print(f"left out, as the model never saw them: {names_of(unknown)}", file=sys.stderr)
    nats = rnn.evaluate(encode_known(text, about.chars))
    print(
        f"{nats:.4f} nats ({nats / math.log(2):.4f} bits) per character\n"
        f"perplexity {math.exp(nats):.2f}; guessing would have {rnn.vocab_size}"
    )


def score_lines(rnn, chars, text):
    """Print each line of a text after its loss and how many of its characters were never seen."""
    print("nats per character, characters never seen and left out, line", file=sys.stderr)
    for line in io.StringIO(text):
        ids = encode_known(start_char(chars) + line, chars)
        nats = f"{rnn.evaluate(ids):.3f}" if len(ids) > 1 else "-"
        line = line.rstrip("\n")
        unseen = sum(char not in chars for char in line)
        print(f"{nats:>7}{unseen:>5}  {line}")


def positive_int(text):
    """A whole number from 1 on; argparse makes one line of the ValueError."""
    if int(text) < 1:
        raise ValueError
    return int(text)


def non_negative_int(text):
    """A whole number from 0 on."""
    if int(text) < 0:
        raise ValueError
    return int(text)


def add_train(commands):
    """The command train and its arguments."""
    train = commands.add_parser("train", help="learn from a text (also without a command)")
    train.set_defaults(run=train_command)
    add = train.add_argument
    fables = Path(__file__).resolve().parent / "data/fables.txt"
    add("text", nargs="?", default=fables, help="UTF-8 text; - is standard input")
    size = train.add_mutually_exclusive_group()
    size.add_argument("--hidden-size", type=positive_int, default=256, help="hidden units (256)")
    size.add_argument("--init-from", help="checkpoint whose weights and characters to start from")
    add("--seq-length", type=positive_int, default=32, help="steps of backpropagation (32)")
    add("--batch-size", type=positive_int, default=16, help="streams, read side by side (16)")
    add("--optimizer", default="adam", choices=OPTIMIZERS, help="update rule (adam)")
    add("--learning-rate", type=float, help="its peak, after the warm-up (the optimiser's own)")
    add("--max-iters", type=positive_int, default=2500, help="iterations, one update each (2500)")
    add("--threshold", type=float, default=0.0, help="stop at this smooth loss (0: never)")
    add("--eval-interval", type=positive_int, default=500, help="iterations from row to row (500)")
    add("--val-fraction", type=float, default=0.1, help="share of the text held out (0.1)")
    add("--shuffle-lines", action="store_true", help="in another order first: for lists of names")
    add("--seed", type=non_negative_int, default=0, help="of the random numbers (0)")
    add("--checkpoint", default="char_rnn.npz", help="file to save in, or NAME-2.npz, and so on")
    add("--plot", help="file for a picture of the losses; needs matplotlib")


def parse(argv):
    """The arguments of the command line; a command that is left out is train."""
    parser = argparse.ArgumentParser(
        prog="char_rnn.py",
        description="A character-level recurrent neural network, from scratch in NumPy",
    )
    commands = parser.add_subparsers(title="commands")
    add_train(commands)

    resume = commands.add_parser("resume", help="go on with a stopped run, in its own file")
    resume.set_defaults(run=resume_command)
    add = resume.add_argument
    add("checkpoint", nargs="?", help="checkpoint (the newest char_rnn*.npz)")
    add("text", nargs="?", help="its text, if it is elsewhere now")
    add("--max-iters", type=positive_int, help="in all; past the end the rate rises")
    add("--plot", help="file for a picture, as in train")

    sample = commands.add_parser("sample", help="write text with a trained model")
    sample.set_defaults(run=sample_command)
    add = sample.add_argument
    add("checkpoint", nargs="?", help="trained model (the newest char_rnn*.npz)")
    add("--start", default="", help="text to go on from")
    add("--length", type=non_negative_int, default=400, help="characters to draw (400)")
    add("--lines", type=positive_int, help="so many lines, each of --length at most")
    add("--temperature", type=float, default=TEMPERATURE, help="lower is tamer (0.7)")
    add("--seed", type=non_negative_int, help="of the random numbers (another each time)")
    add("--last", action="store_true", help="the last weights, not the best")

    test = commands.add_parser("test", help="measure how well a model predicts a text")
    test.set_defaults(run=test_command)
    add = test.add_argument
    add("checkpoint", help="trained model")
    add("text", help="UTF-8 text; - is standard input")
    add("--lines", action="store_true", help="nats per character before each line")
    add("--last", action="store_true", help="the last weights, not the best")

    if not argv or argv[0] not in (*commands.choices, "-h", "--help"):
        argv = ["train", *argv]
    return parser.parse_args(argv)


def main(argv):
    """Run the command line; the exit status is 2 after a mistake, told in one line."""
    try:
        args = parse(argv)
        args.run(args)
    except KeyboardInterrupt:
        return 130
    except (UserError, OSError, MemoryError) as error:
        print(f"char_rnn.py: error: {str(error) or 'out of memory'}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # exit silently when "| head" is done
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding=None if stream.isatty() else "utf-8", errors="replace")
    sys.exit(main(sys.argv[1:]))
