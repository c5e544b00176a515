"""The prefix-KV cache's index: a radix tree of token ids whose edges name the KV slots of their tokens.

Each branch starts at a root that names everything that shapes the values below it (`RootKey`), so one tenant's, one
adapter's or one dtype's KV is never found under another's. A token id may be virtual (negative): under a root with an
adapter's digest it names that adapter's learned vector, so ids and vectors cannot be confused (vLLM issue 56655).

After RadixAttention (Zheng et al., SGLang, NeurIPS 2024, arXiv 2312.07104), to the token.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from softmux.scheduler.leaves import Leaves, is_another_use


class RootKey(NamedTuple):
    """What shapes the KV below a root. `digest` None is the bare model: salted by its tenant all the same.

    `tenant` is who asks, also where the adapter is another tenant's (`owner`; empty where it is its own): those who
    share an adapter share no cache, so that no answer's time tells one of them what another did.
    """

    tenant: str
    digest: str | None
    base_fingerprint: str
    kv_dtype: str
    owner: str = ""


@dataclass(slots=True, eq=False)
class Node:
    """An edge and what hangs below it. `refs` counts the sequences that hold it or something below it."""

    root: RootKey
    parent: Node | None
    tokens: list[int]
    slots: list[int]
    children: dict[int, Node] = field(default_factory=dict)
    refs: int = 0
    last_used: int = 0
    came: int = 0
    """How many tokens the tree had taken in, ever, when this was left here."""
    again: bool = False
    """Another request has come to it since it was left here; of a root: its adapter's prompt was here, and gave way."""
    lost: int = 0
    """Of such a root: how long the prompt was."""
    attached: bool = True
    """False once evicted: the queues of leaves may still name it."""


class RadixTree:
    """Owns every slot its edges name, until `evict` or `clear` gives them back to the caller, who has `slots`."""

    def __init__(self, slots: int) -> None:
        self._roots: dict[RootKey, Node] = {}
        self._clock = itertools.count(1)
        self._leaves = Leaves(slots)
        self._came = 0
        self.tokens = 0
        self.evictable = 0

    # --- finding -----------------------------------------------------------------------------------------------------

    def root(self, key: RootKey) -> Node:
        node = self._roots.get(key)
        if node is None:
            lost = self._leaves.remembers(key)
            node = self._roots[key] = Node(root=key, parent=None, tokens=[], slots=[], again=lost > 0, lost=lost)
        return node

    def begins(self, key: RootKey, token: int) -> bool:
        """Whether a path below that root begins with `token`; uses nothing."""
        node = self._roots.get(key)
        return node is not None and token in node.children

    def match(
        self, start: Node, tokens: list[int], begin: int, end: int, *, back: bool = False
    ) -> tuple[Node, list[int]]:
        """The longest path below `start` that spells `tokens[begin:end]`: its last node, and the slots along it.

        An edge that matches in part is split, so that the returned node ends exactly where the match does. `back`: who
        asks left there what it finds, or used it before; that is no use by another.
        """
        node, slots, at = start, [], begin
        now = next(self._clock)
        node.last_used = now
        while at < end:
            child = node.children.get(tokens[at])
            if child is None:
                break
            edge = child.tokens
            limit = min(len(edge), end - at)
            same = limit
            if edge[:limit] != tokens[at : at + limit]:
                same = next(i for i in range(1, limit) if edge[i] != tokens[at + i])
            if same < len(edge):
                child = self._split(child, same)
            child.last_used = now
            if not child.again and not back:
                self._found(child)
            slots.extend(child.slots)
            node = child
            at += same
        return node, slots

    def _found(self, node: Node) -> None:
        """The node was used just now, and had not been found again before."""
        if not is_another_use(self._came - node.came, self.tokens):
            return
        node.again = True
        if node.refs == 0:
            self._leaves.once -= len(node.tokens)
            self._leaves.offer(node)

    def _split(self, node: Node, at: int) -> Node:
        """Cuts `node`'s edge after `at` tokens; returns the new upper half. `node` stays the lower half."""
        parent = node.parent
        assert parent is not None
        upper = Node(
            root=node.root,
            parent=parent,
            tokens=node.tokens[:at],
            slots=node.slots[:at],
            children={node.tokens[at]: node},
            refs=node.refs,
            last_used=node.last_used,
            came=node.came,
            again=node.again,
        )
        parent.children[upper.tokens[0]] = upper
        node.tokens = node.tokens[at:]
        node.slots = node.slots[at:]
        node.parent = upper
        return upper

    # --- growing -----------------------------------------------------------------------------------------------------

    def append(self, node: Node, tokens: list[int], slots: list[int]) -> Node | None:
        """A new edge below `node`, taking over `slots`; None, and nothing taken, where that path begins already."""
        if tokens[0] in node.children:
            return None
        back = node.parent is None and node.again and tokens[0] < 0  # an adapter's prompt that has been here before
        self.tokens += len(tokens)
        self._came += len(tokens)
        now = next(self._clock)
        child = Node(node.root, node, tokens, slots, last_used=now, came=self._came, again=back)
        node.children[tokens[0]] = child
        self._let_go(child)
        return child

    def absorb(self, node: Node, tokens: list[int], slots: list[int]) -> list[int]:
        """Keeps what a finished sequence computed below `node`; returns the slots the tree had no need of."""
        if not tokens:
            return []
        last, known = self.match(node, tokens, 0, len(tokens))
        spare = slots[: len(known)]
        if len(known) < len(tokens):
            self.append(last, tokens[len(known) :], slots[len(known) :])
        return spare

    # --- holding -----------------------------------------------------------------------------------------------------

    def lock(self, node: Node) -> None:
        """Nothing on the path from `node` to its root is evicted until `unlock`."""
        at: Node | None = node
        while at is not None:
            if at.refs == 0:
                self._take(at)
            at.refs += 1
            at = at.parent

    def unlock(self, node: Node) -> None:
        at: Node | None = node
        while at is not None:
            at.refs -= 1
            if at.refs == 0:
                self._let_go(at)
            at = at.parent

    def _let_go(self, node: Node) -> None:
        """Nothing holds the node any more."""
        if node.parent is None:
            if not node.children:
                self._drop(node)
            return
        self.evictable += len(node.tokens)
        if not node.again:
            self._leaves.once += len(node.tokens)
        self._leaves.offer(node)

    def _take(self, node: Node) -> None:
        """The node is held from here on, or is none any more."""
        self.evictable -= len(node.tokens)
        if not node.again:
            self._leaves.once -= len(node.tokens)

    # --- shrinking ---------------------------------------------------------------------------------------------------

    def evict(self, count: int) -> list[int]:
        """Frees at least `count` slots if that many are unreferenced: by last use, those first that came once and were
        not found again (`leaves.py`)."""
        freed: list[int] = []
        while len(freed) < count and (node := self._leaves.next(self.evictable)) is not None:
            freed.extend(self._detach(node))
        return freed

    def _detach(self, node: Node) -> list[int]:
        node.attached = False
        parent, first = node.parent, node.tokens[0]
        assert parent is not None
        del parent.children[first]
        self.tokens -= len(node.tokens)
        self._take(node)
        if first < 0:  # a prompt that came in several steps is as many nodes
            parent.lost = len(node.tokens) + node.lost
            parent.again |= parent.parent is None
        if parent.refs == 0 and not parent.children:
            if parent.parent is None:
                self._drop(parent)
            else:
                self._leaves.offer(parent)
        return node.slots

    def _drop(self, root: Node) -> None:
        """Nothing holds a root, and nothing is below it."""
        del self._roots[root.root]
        if root.again:
            self._leaves.remember(root.root, root.lost)

    def clear(self) -> list[int]:
        """Forgets everything (no sequence may hold a node); returns every slot."""
        freed = [slot for node in self.nodes() for slot in node.slots]
        if any(node.refs for node in self.nodes()):
            raise RuntimeError("the prefix cache is cleared while sequences hold parts of it")
        self._roots.clear()
        self._leaves.clear()
        self.tokens = self.evictable = 0
        return freed

    # --- looking -----------------------------------------------------------------------------------------------------

    def nodes(self) -> Iterator[Node]:
        pending = list(self._roots.values())
        while pending:
            node = pending.pop()
            pending.extend(node.children.values())
            yield node

    def check_integrity(self, holders: Sequence[Node] = ()) -> None:
        """Counts agree with the tree, children with their parents, references with `holders`."""
        expected: dict[int, int] = {}
        for holder in holders:
            at: Node | None = holder
            while at is not None:
                expected[id(at)] = expected.get(id(at), 0) + 1
                at = at.parent
        tokens = evictable = once = 0
        offered = {again: {id(node) for node in self._leaves.queue(again=again)} for again in (False, True)}
        for node in self.nodes():
            assert len(node.tokens) == len(node.slots), "an edge has as many slots as tokens"
            assert node.refs == expected.get(id(node), 0), f"references of {node.root} are off"
            assert node.attached
            for first, child in node.children.items():
                assert child.tokens[0] == first
                assert child.parent is node
                assert child.root == node.root, "an edge hangs below another root"
            tokens += len(node.tokens)
            if node.refs == 0:
                evictable += len(node.tokens)
                once += 0 if node.again else len(node.tokens)
                if node.parent is not None and not node.children:
                    assert id(node) in offered[node.again], "an unreferenced leaf is not in the queue of its kind"
        assert (tokens, evictable, once) == (self.tokens, self.evictable, self._leaves.once), "token counts are off"
