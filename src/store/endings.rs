//! The news that sessions are over: told to other replicas, and heard from them.
//!
//! Each ending is published, and written to a set in the order of the server's time. Publishing is fast but may be lost,
//! so every replica also looks at the end of the set again and again, and at all of it whenever it connects. What came by
//! front-channel logout, which anybody can send, has a smaller set of its own, and pushes out only its like.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use base64_simd::URL_SAFE_NO_PAD;
use futures_util::StreamExt;
use parking_lot::Mutex;
use redis::{Cmd, Value};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::link::{Link, Subscription};
use super::{Fate, Observer, Store, millis};
use crate::clock::{Clock, Timestamp};
use crate::session::store::{Announce, Away, By, Ending, Heard, Name};

const SCRIPT: &str = include_str!("endings.lua");
/// Endings that are kept while Redis is away, about 60 bytes each; beyond it the oldest goes.
const KEPT: usize = 10_000;
/// Endings in one command.
const BATCH: usize = 100;
/// How often the set is looked at: with the time of an answer still within two seconds.
const POLL: Duration = Duration::from_millis(1_500);
/// What is looked at again each time, in the server's milliseconds: after a fail-over its clock may be another one.
const OVERLAP: u64 = 10_000;
/// Endings of one answer when all are read.
const PAGE: usize = 1_000;
/// The pause before telling again what could not be told.
const AGAIN: Duration = Duration::from_millis(250);

/// Where an ending is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Set {
    #[default]
    Proven,
    Unproven,
}

impl Set {
    const ALL: [Self; 2] = [Self::Proven, Self::Unproven];

    fn key(self, channel: &str) -> String {
        match self {
            Self::Proven => channel.to_owned(),
            Self::Unproven => format!("{channel}:unproven"),
        }
    }

    /// How many it may hold.
    fn most(self) -> usize {
        match self {
            Self::Proven => 200_000,
            Self::Unproven => 20_000,
        }
    }

    fn of(ending: &Ending) -> Self {
        if ending.by == By::Frontchannel { Self::Unproven } else { Self::Proven }
    }
}

/// How it is written who ended a session.
const WORDS: [(By, &str); 5] = [
    (By::Itself, "itself"),
    (By::Backchannel, "backchannel"),
    (By::Frontchannel, "frontchannel"),
    (By::Operator, "operator"),
    (By::Nobody, "nobody"),
];

/// One line of text: name, by whom, begun before, until.
fn write(ending: &Ending) -> String {
    let name = URL_SAFE_NO_PAD.encode_to_string(ending.name.0);
    let by = WORDS.iter().find(|(by, _)| *by == ending.by).map_or("itself", |(_, word)| word);
    format!("{name}:{by}:{}:{}", ending.begun_before.as_millis(), ending.until.as_millis())
}

fn parse(line: &[u8]) -> Option<Ending> {
    let mut parts = std::str::from_utf8(line).ok()?.split(':');
    let name = URL_SAFE_NO_PAD.decode_to_vec(parts.next()?).ok()?.try_into().ok()?;
    let by = parts.next()?;
    let by = WORDS.iter().find(|(_, word)| *word == by).map(|(by, _)| *by)?;
    let mut time = || parts.next()?.parse().ok().map(Timestamp::from_millis);
    let ending = Ending { name: Name(name), begun_before: time()?, until: time()?, by };
    parts.next().is_none().then_some(ending)
}

/// What is yet to be told.
pub(super) struct Outbox {
    clock: Clock,
    observer: Arc<dyn Observer>,
    queue: Mutex<VecDeque<Ending>>,
    /// How many are in the queue.
    left: watch::Sender<usize>,
}

impl Outbox {
    pub(super) fn new(clock: Clock, observer: Arc<dyn Observer>) -> Self {
        Self { clock, observer, queue: Mutex::default(), left: watch::Sender::new(0) }
    }

    fn add(&self, endings: &[Ending], away: bool) {
        let (left, dropped) = {
            let mut queue = self.queue.lock();
            queue.extend(endings);
            let dropped = queue.len().saturating_sub(KEPT);
            let mut excess = dropped;
            if excess > 0 {
                queue.retain(|ending| {
                    let goes = excess > 0 && Set::of(ending) == Set::Unproven;
                    excess -= usize::from(goes);
                    !goes
                });
                queue.drain(..excess);
            }
            (queue.len(), dropped)
        };
        if away {
            self.observer.endings(Fate::Kept, endings.len());
            tracing::warn!(target: "sidegate", event = "endings_kept", count = endings.len(), waiting = left);
        }
        self.dropped(dropped);
        self.left.send_replace(left);
    }

    fn dropped(&self, count: usize) {
        if count > 0 {
            self.observer.endings(Fate::Dropped, count);
            tracing::error!(target: "sidegate", event = "endings_dropped", count);
        }
    }

    /// Returns when nothing is left to be told.
    pub(super) async fn empty(&self) {
        let _ = self.left.subscribe().wait_for(|left| *left == 0).await;
    }

    /// Tells what there is to tell. Ends never.
    pub(super) async fn deliver(&self, link: &Link, key: &str) {
        let mut left = self.left.subscribe();
        let mut failed = false;
        loop {
            let _ = left.wait_for(|left| *left > 0).await;
            link.up().await;
            let batch: Vec<Ending> = {
                let queue = self.queue.lock();
                let set = queue.front().map(Set::of);
                queue.iter().filter(|ending| Some(Set::of(ending)) == set).take(BATCH).copied().collect()
            };
            let now = self.clock.now();
            let current: Vec<&Ending> = batch.iter().filter(|ending| ending.until > now).collect();
            let told = match current.is_empty() {
                true => Ok(()),
                false => link.ask(&announcement(key, &current, now)).await.map(drop),
            };
            if told.is_err() {
                if !std::mem::replace(&mut failed, true) {
                    self.observer.endings(Fate::Kept, current.len());
                    tracing::warn!(target: "sidegate", event = "endings_kept", count = current.len());
                }
                sleep(AGAIN).await;
                continue;
            }
            if std::mem::take(&mut failed) {
                tracing::info!(target: "sidegate", event = "endings_told", count = current.len());
            }
            self.observer.endings(Fate::Told, current.len());
            let rest = {
                let mut queue = self.queue.lock();
                // Some may have been dropped meanwhile.
                let told: HashSet<Ending> = batch.into_iter().collect();
                queue.retain(|ending| !told.contains(ending));
                queue.len()
            };
            self.left.send_replace(rest);
        }
    }
}

/// All of one set.
fn announcement(channel: &str, endings: &[&Ending], now: Timestamp) -> Cmd {
    let life = endings.iter().map(|ending| ending.until.since(now)).max().unwrap_or_default();
    let set = endings.first().map(|ending| Set::of(ending)).unwrap_or_default();
    let mut command = redis::cmd("EVAL");
    command.arg(SCRIPT).arg(1).arg(set.key(channel)).arg(channel).arg(millis(life)).arg(set.most());
    for ending in endings {
        command.arg(write(ending));
    }
    command
}

impl Announce for Store {
    fn announce(&self, endings: &[Ending]) {
        self.outbox.add(endings, self.link.number().is_none());
    }
}

/// Hears what other replicas tell, and what this one told.
pub(super) struct Reader<'a> {
    link: &'a Link,
    /// Also the key of the first set.
    channel: &'a str,
    heard: &'a dyn Heard,
    marks: [Mark; 2],
}

/// How far a set was read.
struct Mark {
    key: String,
    /// The latest time that was seen in the set, by the server's clock.
    latest: u64,
    /// What the last look brought.
    known: HashSet<Vec<u8>>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(link: &'a Link, channel: &'a str, heard: &'a dyn Heard) -> Self {
        let marks = Set::ALL.map(|set| Mark { key: set.key(channel), latest: 0, known: HashSet::new() });
        Self { link, channel, heard, marks }
    }

    /// Listens and looks. Ends never.
    pub(super) async fn listen(mut self) {
        loop {
            let number = self.link.up().await;
            // Subscribed before all is read: what is told in between is heard twice rather than never.
            let mut subscription = self.link.subscribe(self.channel).await.ok();
            if self.read_all().await.is_err() {
                sleep(AGAIN).await;
                continue;
            }
            let mut ticks = interval(POLL);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            ticks.reset();
            loop {
                tokio::select! {
                    message = next(&mut subscription) => match message {
                        Some(message) => pass_on(self.heard, message.split(|byte| *byte == b'\n')),
                        None => subscription = None,
                    },
                    _ = ticks.tick() => {
                        if subscription.is_none() {
                            subscription = self.link.subscribe(self.channel).await.ok();
                        }
                        // A failure is told by the link, and the next look brings what this one would have.
                        let _ = self.look().await;
                        if self.link.number() != Some(number) {
                            break;
                        }
                    }
                }
            }
        }
    }

    async fn read_all(&mut self) -> Result<(), Away> {
        for mark in &mut self.marks {
            mark.latest = 0;
            mark.known.clear();
            let mut from = 0;
            loop {
                let page = mark.read(self.link, 0, Some(from)).await?;
                pass_on(self.heard, page.iter().map(|(line, _)| line.as_slice()));
                mark.see(&page);
                if page.len() < PAGE {
                    break;
                }
                from += PAGE;
            }
        }
        Ok(())
    }

    async fn look(&mut self) -> Result<(), Away> {
        for mark in &mut self.marks {
            let page = mark.read(self.link, mark.latest.saturating_sub(OVERLAP), None).await?;
            let news = page.iter().map(|(line, _)| line).filter(|line| !mark.known.contains(*line));
            pass_on(self.heard, news.map(Vec::as_slice));
            mark.see(&page);
            mark.known = page.into_iter().map(|(line, _)| line).collect();
        }
        Ok(())
    }
}

impl Mark {
    fn see(&mut self, page: &[(Vec<u8>, u64)]) {
        self.latest = page.iter().map(|(_, time)| *time).fold(self.latest, u64::max);
    }

    /// Lines with their times, from a time on.
    async fn read(&self, link: &Link, since: u64, page: Option<usize>) -> Result<Vec<(Vec<u8>, u64)>, Away> {
        let mut command = redis::cmd("ZRANGEBYSCORE");
        command.arg(&self.key).arg(since).arg("+inf").arg("WITHSCORES");
        if let Some(from) = page {
            command.arg("LIMIT").arg(from).arg(PAGE);
        }
        Ok(scored(link.ask(&command).await?))
    }
}

fn pass_on<'m>(heard: &dyn Heard, lines: impl Iterator<Item = &'m [u8]>) {
    let endings: Vec<Ending> = lines.filter_map(parse).collect();
    if !endings.is_empty() {
        heard.heard(&endings);
    }
}

/// Waits for ever when there is no subscription.
async fn next(subscription: &mut Option<Subscription>) -> Option<Vec<u8>> {
    match subscription {
        Some(subscription) => subscription.next().await,
        None => std::future::pending().await,
    }
}

fn scored(value: Value) -> Vec<(Vec<u8>, u64)> {
    let Value::Array(items) = value else { return Vec::new() };
    let mut items = items.into_iter();
    let mut lines = Vec::new();
    while let (Some(Value::BulkString(line)), Some(Value::BulkString(score))) = (items.next(), items.next()) {
        let score = std::str::from_utf8(&score).ok().and_then(|score| score.parse::<f64>().ok()).unwrap_or_default();
        lines.push((line, score as u64));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ending(name: u8) -> Ending {
        let begun_before = Timestamp::from_secs(1_800_000_000);
        let until = begun_before + Duration::from_secs(60);
        Ending { name: Name([name; 16]), begun_before, until, by: By::Operator }
    }

    #[derive(Default)]
    struct Counts(Mutex<Vec<(Fate, usize)>>);

    impl Observer for Counts {
        fn up(&self, _: bool) {}
        fn endings(&self, fate: Fate, count: usize) {
            self.0.lock().push((fate, count));
        }
    }

    #[test]
    fn an_ending_is_one_line_of_text() {
        let ending = ending(7);
        let line = write(&ending);
        assert_eq!(line, "BwcHBwcHBwcHBwcHBwcHBw:operator:1800000000000:1800000060000");
        assert_eq!(parse(line.as_bytes()), Some(ending));
        for (by, _) in WORDS {
            let ending = Ending { by, ..ending };
            assert_eq!(parse(write(&ending).as_bytes()), Some(ending));
        }
        for broken in [":itself:1:2", "!:itself:1:2", "?:x:1:2", "?:itself:1", "?:itself:x:2", "?:itself:1:2:3", ""] {
            let broken = broken.replace('?', "BwcHBwcHBwcHBwcHBwcHBw");
            assert_eq!(parse(broken.as_bytes()), None, "{broken}");
        }
    }

    #[test]
    fn what_is_kept_is_bounded_and_counted() {
        let counts = Arc::new(Counts::default());
        let outbox = Outbox::new(Clock::manual(Timestamp::from_secs(1_800_000_000)), Arc::clone(&counts) as _);
        outbox.add(&vec![ending(1); KEPT], true);
        outbox.add(&[ending(2), ending(3)], true);
        assert_eq!(outbox.queue.lock().len(), KEPT);
        assert_eq!(outbox.queue.lock().back(), Some(&ending(3)), "the newest stay");
        let unproven = Ending { by: By::Frontchannel, ..ending(4) };
        outbox.add(&vec![unproven; KEPT], true);
        assert_eq!(outbox.queue.lock().iter().filter(|it| **it == unproven).count(), 0, "nothing proven goes for them");
        assert_eq!(
            *counts.0.lock(),
            [(Fate::Kept, KEPT), (Fate::Kept, 2), (Fate::Dropped, 2), (Fate::Kept, KEPT), (Fate::Dropped, KEPT),]
        );
    }
}
