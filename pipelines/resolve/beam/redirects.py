"""Beam steps that follow redirects to the sources that they reach, by the rules of `pipelines.resolve.aliases`.

    titles, redirects -> by title -> Targets -> hops -> by title -> Nodes -> reached
                                        `-> by folded title -> Folded -^      `-> double redirects, by wiki -> Walks -^

All names of all wikis are shuffled four times, about 150 bytes each. Redirects that lead to redirects are followed in
the memory of one worker for each wiki: MediaWiki's bots fix them, so there are few.

Legend: a `title` is (scope, canonical title); a `link` is (scope, alias, target), which identifies a redirect; a hop is
(link, the redirect's own title, the title that its target means).
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import apache_beam as beam
from apache_beam.pvalue import TaggedOutput
from apache_beam.typehints import with_output_types

from pipelines.resolve.aliases import MAX_HOPS
from pipelines.resolve.beam.run_files import RECEIPTS, Counting, Piece, ReadStaged, Values, read_piece, rows_of

Title: TypeAlias = tuple[str, str]
Link: TypeAlias = tuple[str, str, str]
_KEYED = tuple[tuple[str, str], Any]


def follow(folders: Any) -> tuple[Any, tuple[Any, ...]]:
    """Build the steps over the staged directories; return rows (scope, alias, target, source_id), and receipts."""
    titles = folders | "titles" >> ReadStaged("documents", _Titles())
    redirects = folders | "redirects" >> ReadStaged("redirects", _Redirects(), "wanted")
    by_title = {"titles": titles.rows, "own": redirects.rows, "wanted": redirects.wanted}
    targets = (
        by_title
        | "by title" >> beam.CoGroupByKey()
        | "targets" >> beam.ParDo(Targets()).with_outputs(RECEIPTS, "names", "unmatched", main="hops")
    )
    folded = (
        {"names": targets.names, "unmatched": targets.unmatched}
        | "by folded title" >> beam.CoGroupByKey()
        | "folded" >> beam.ParDo(Folded()).with_outputs(RECEIPTS, main="hops")
    )
    hops = (targets.hops, folded.hops) | "hops" >> beam.Flatten()
    arrivals = hops | "by target" >> beam.Map(lambda hop: (hop[2], hop[0])).with_output_types(_KEYED)
    leaving = hops | "by own title" >> beam.Map(lambda hop: (hop[1], hop[2])).with_output_types(_KEYED)
    nodes = (
        {"titles": titles.rows, "arrivals": arrivals, "leaving": leaving}
        | "by node" >> beam.CoGroupByKey()
        | "nodes" >> beam.ParDo(Nodes()).with_outputs(RECEIPTS, "waiting", "onward", main="reached")
    )
    onward = (
        {"titles": titles.rows, "onward": nodes.onward}
        | "by onward title" >> beam.CoGroupByKey()
        | "steps" >> beam.ParDo(Steps()).with_outputs(RECEIPTS, main="steps")
    )
    walks = (
        {"steps": onward.steps, "waiting": nodes.waiting}
        | "by wiki" >> beam.CoGroupByKey()
        | "walks" >> beam.ParDo(Walks()).with_outputs(RECEIPTS, main="reached")
    )
    reached = (nodes.reached, walks.reached) | "reached" >> beam.Flatten()
    steps = (titles, redirects, targets, folded, nodes, onward, walks)
    return reached, tuple(step[RECEIPTS] for step in steps)


@with_output_types(_KEYED)
class _Titles(Counting):
    """Read a row group of documents; yield (title, (alias hash, source_id)) of those in wikis."""

    def process(self, piece: Piece) -> Iterator[tuple[Title, tuple[int, int]]]:
        columns = ["scope", "canonical", "alias_hash", "origin_id"]
        found = rows_of(read_piece(piece, columns).select(columns))
        for scope, canonical, alias_hash, origin_id in dict.fromkeys(found):
            if None not in (scope, canonical, origin_id):
                self.count("titles sent")
                yield (scope, canonical), (alias_hash, origin_id)


@with_output_types(_KEYED)
class _Redirects(Counting):
    """Read a row group of redirects; yield (own title, alias hash); tags "wanted" with (target, link and more)."""

    def process(self, piece: Piece) -> Iterator[Any]:
        columns = ["scope", "alias", "canonical", "alias_hash", "target", "target_canonical", "target_hash"]
        table = read_piece(piece, columns).select(columns)
        self.count("redirects sent", table.num_rows)
        for scope, alias, canonical, alias_hash, target, target_canonical, target_hash in rows_of(table):
            yield (scope, canonical), alias_hash
            wanted = ((scope, alias, target), canonical, target_hash)
            yield TaggedOutput("wanted", ((scope, target_canonical), wanted))


class Targets(Counting):
    """Join a title's owners with the links to it; links to a title without owner are matched later by folded title."""

    def process(self, group: tuple[Title, Mapping[str, Iterable[Any]]]) -> Iterator[Any]:
        """Yield hops; tags "names" ((scope, hash), canonical title), "unmatched" ((scope, hash), link and title)."""
        title, found = group
        scope, canonical = title
        titles, own_hashes = list(found["titles"]), list(found["own"])
        self.count("titles at targets", len(titles))
        self.count("redirects at targets", len(own_hashes))
        hashes = {alias_hash for alias_hash, _ in titles} | set(own_hashes)
        for alias_hash in sorted(hashes):
            self.count("names sent")
            yield TaggedOutput("names", ((scope, alias_hash), canonical))
        for link, own, target_hash in found["wanted"]:
            self.count("redirects received")
            if hashes:
                self.count("hops sent")
                yield link, (scope, own), title
            else:
                self.count("unmatched sent")
                yield TaggedOutput("unmatched", ((scope, target_hash), (link, own)))


class Folded(Counting):
    """Match links to a folded title, if it can mean only one title."""

    def process(
        self, group: tuple[tuple[str, int], Mapping[str, Iterable[Any]]]
    ) -> Iterator[tuple[Link, Title, Title]]:
        """Yield hops."""
        (scope, _), found = group
        names = list(found["names"])
        self.count("names received", len(names))
        for link, own in found["unmatched"]:
            self.count("unmatched received")
            if len(names) == 1:
                self.count("hops sent")
                yield link, (scope, own), (scope, names[0])


class Nodes(Counting):
    """Join a title's sources with the links that lead to it and the titles that it leads to.

    Links to a title that is only a redirect are tagged as waiting; `Walks` follows them.
    """

    def process(self, group: tuple[Title, Mapping[str, Iterable[Any]]]) -> Iterator[Any]:
        """Yield (scope, alias, target, source_id); tags "waiting" (scope, (title, link)), "onward" (next, title)."""
        title, found = group
        titles, leaving = list(found["titles"]), list(found["leaving"])
        self.count("titles at nodes", len(titles))
        self.count("hops at nodes", len(leaving))
        sources = sorted({source for _, source in titles})
        onward = set() if sources else set(leaving)
        is_waiting = False
        for link in found["arrivals"]:
            self.count("hops received")
            for source in sources:
                self.count("reached sent")
                yield (*link, source)
            if onward:
                is_waiting = True
                self.count("waiting sent")
                yield TaggedOutput("waiting", (title[0], (title, link)))
        for target in sorted(onward) if is_waiting else ():
            self.count("onward sent")
            yield TaggedOutput("onward", (target, title))


@with_output_types(tuple[str, Any])
class Steps(Counting):
    """Join a title's sources with the redirects to it that other links lead to; the input of `Walks`, by wiki."""

    def process(self, group: tuple[Title, Mapping[str, Iterable[Any]]]) -> Iterator[tuple[str, Values]]:
        """Yield (scope, (title, the next title, its sources))."""
        target, found = group
        titles = list(found["titles"])
        self.count("titles at steps", len(titles))
        sources = tuple(sorted({source for _, source in titles}))
        for title in found["onward"]:
            self.count("onward received")
            self.count("steps sent")
            yield target[0], (title, target, sources)


class Walks(Counting):
    """Follow a wiki's double redirects to the sources that they reach within `MAX_HOPS`."""

    def process(self, group: tuple[str, Mapping[str, Iterable[Any]]]) -> Iterator[Any]:
        """Yield (scope, alias, target, source_id)."""
        onward: dict[Title, list[Title]] = collections.defaultdict(list)
        sources: dict[Title, tuple[int, ...]] = {}
        for title, target, found in group[1]["steps"]:
            self.count("steps received")
            onward[title].append(target)
            sources[target] = found
        reached: dict[Title, list[int]] = {}
        for title, link in group[1]["waiting"]:
            self.count("waiting received")
            if title not in reached:
                reached[title] = walk(title, onward, sources, MAX_HOPS - 1)  # one hop led here
            for source in reached[title]:
                self.count("reached sent")
                yield (*link, source)


def walk(
    start: Title, onward: Mapping[Title, Iterable[Title]], sources: Mapping[Title, Iterable[int]], hops: int
) -> list[int]:
    """Return the sources whose title can be reached from `start` in at most `hops` steps.

    Args:
        start: a title that no source has.
        onward: title -> the titles that it leads to.
        sources: title -> the sources that have it; a walk ends there.
        hops: the most steps; a cycle ends after one round.
    """
    seen, ends = {start}, set[int]()
    here = {start}
    for _ in range(hops):
        there = {target for title in here for target in onward.get(title, ())} - seen
        seen |= there
        ends.update(source for title in there for source in sources.get(title, ()))
        here = {title for title in there if not sources.get(title)}
    return sorted(ends)
