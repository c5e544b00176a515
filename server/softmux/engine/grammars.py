"""Compiled grammars: made in threads beside the steps, kept while they are used."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from time import perf_counter

from llguidance import LLMatcher

from softmux.engine.durations import Durations
from softmux.errors import InvalidRequest, SoftmuxError
from softmux.grammars.compiler import GrammarCompiler
from softmux.grammars.matcher import Guide
from softmux.types import Grammar

_THREADS = 2
_Key = tuple[str, str, str]


class Grammars:
    """At most `keep` of them, the least recently used go first. A tenant's are its own: nobody can tell by an answer's
    time what others ask for. `on_ready` is called, from any thread, when one has been compiled."""

    def __init__(
        self, compiler: Callable[[], GrammarCompiler], *, keep: int, on_ready: Callable[[], None] = lambda: None
    ) -> None:
        self._make_compiler = compiler
        self._compiler: GrammarCompiler | None = None
        self._keep = keep
        self._on_ready = on_ready
        self._compiled: OrderedDict[_Key, Future[LLMatcher]] = OrderedDict()
        self._fresh: set[_Key] = set()
        """Those that no guide was given of yet."""
        self._building = Lock()
        self._threads = ThreadPoolExecutor(_THREADS, "grammars")
        self.seconds = Durations()
        """What compiling took."""
        self.hits = self.misses = 0
        """Guides given of grammars that were there already, and of those that were not: a request's first alone."""

    @property
    def compiler(self) -> GrammarCompiler:
        """Built when first needed. Raises `InvalidRequest` where this model can't follow grammars."""
        with self._building:
            self._compiler = self._compiler or self._make_compiler()
        return self._compiler

    def __len__(self) -> int:
        return len(self._compiled)

    def expect(self, tenant: str, grammar: Grammar) -> bool:
        """Whether `guide` would give an answer at once; if not, it is on its way."""
        return self._future(tenant, grammar).done()

    def guide(self, tenant: str, grammar: Grammar) -> Guide:
        """For a new sequence. Waits for the compiler where `expect` said no. Raises as `GrammarCompiler.compile`."""
        future, key = self._future(tenant, grammar), (tenant, grammar.kind, grammar.text)
        fresh = key in self._fresh
        self._fresh.discard(key)
        self.misses, self.hits = self.misses + fresh, self.hits + (not fresh)
        try:
            return Guide(future.result().deep_copy(), self.compiler.mask_words)
        except SoftmuxError as error:
            raise type(error)(error.message, param=grammar.param) from None

    def _future(self, tenant: str, grammar: Grammar) -> Future[LLMatcher]:
        key = (tenant, grammar.kind, grammar.text)
        found = self._compiled.get(key)
        if found is None:
            found = self._compiled[key] = self._threads.submit(self._compile, grammar)
            self._fresh.add(key)
            found.add_done_callback(lambda _: self._on_ready())
            self._let_go()
        else:
            self._compiled.move_to_end(key)
        return found

    def _let_go(self) -> None:
        """Makes room. What is being compiled stays: it is waited for, and would only be compiled again."""
        beyond = len(self._compiled) - self._keep
        done = [key for key, future in self._compiled.items() if future.done()] if beyond > 0 else []
        for key in done[:beyond]:
            del self._compiled[key]
            self._fresh.discard(key)

    def _compile(self, grammar: Grammar) -> LLMatcher:
        compiler = self.compiler
        began = perf_counter()
        try:
            return compiler.compile(grammar)
        finally:
            self.seconds.add(perf_counter() - began)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


def compiler_of(model: str, vocabulary: int, ends: tuple[int, ...]) -> GrammarCompiler:
    """On the tokenizer that transformers builds for the model, as the API's is. Raises `InvalidRequest`."""
    from transformers import AutoTokenizer

    if not ends:
        raise InvalidRequest("This model has no end token, so that a reply could not end: it follows no grammar.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
        backend = tokenizer.backend_tokenizer
        backend.no_padding()
        backend.no_truncation()
        return GrammarCompiler(backend.to_str(), vocabulary, ends)
    except Exception as error:  # whatever its files do to the library
        words = str(error).strip().split("\n")[0][:300]
        raise InvalidRequest(f"This model's tokenizer can't follow grammars: {words}") from error
