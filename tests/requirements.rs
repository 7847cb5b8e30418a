//! Which test shows which requirement: `docs/requirements.md` is made of the IDs in the tests' names and doc lines, and
//! a requirement of level M that nothing shows fails here.
//!
//! After a change, `BLESS=1 cargo test --test requirements` writes the table anew.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "helpers of tests are test code too")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

const LIST: &str = include_str!("requirements/list.txt");
/// Tables of modules that one test goes through, a module a line: the table's file, what stands on a line that the test
/// leaves out, and the test.
const TABLES: [(&str, &str, &str); 1] = [(
    "tests/support/provider/modules.rs",
    "Expect::Flow",
    "tests/provider_faults.rs: every_module_of_the_suite_ends_as_it_should",
)];
/// More would make the table unreadable.
const SHOWN: usize = 3;

struct Requirement {
    heading: &'static str,
    id: &'static str,
    level: &'static str,
    /// Why no test is needed, or where else it is shown.
    note: Option<&'static str>,
}

fn requirements() -> Vec<Requirement> {
    let mut heading = "";
    let mut found = Vec::new();
    for line in LIST.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with(';')) {
        if let Some(text) = line.strip_prefix("# ") {
            heading = text;
            continue;
        }
        let (row, note) = line.split_once(" = ").map_or((line, None), |(row, note)| (row, Some(note)));
        let (id, level) = row.split_once(' ').unwrap_or_else(|| panic!("no level: {line}"));
        assert!(["M", "M*", "S", "D", "n/a"].contains(&level), "{line}");
        found.push(Requirement { heading, id, level, note });
    }
    found
}

/// A test, with the text that says what it shows: its doc lines and its name.
struct Test {
    name: String,
    says: String,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root().join("src"), root().join("tests")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() {
                if name != "node_modules" {
                    folders.push(path);
                }
            } else if [".rs", ".test.mjs"].iter().any(|end| name.ends_with(end)) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn tests() -> Vec<Test> {
    let mut found = Vec::new();
    for path in files() {
        let text = fs::read_to_string(&path).unwrap();
        let file = path.strip_prefix(root()).unwrap().to_string_lossy().replace('\\', "/");
        if file.ends_with(".mjs") {
            javascript(&file, &text, &mut found);
        } else {
            rust(&file, &text, &mut found);
        }
    }
    for (file, left_out, name) in TABLES {
        let text = fs::read_to_string(root().join(file)).unwrap();
        let test = found.iter_mut().find(|test| test.name == name).unwrap_or_else(|| panic!("there is no {name}"));
        for line in text.lines().filter(|line| !line.contains(left_out)) {
            let literal = ["module(\"", "with_userinfo(\""].iter().find_map(|call| line.trim().strip_prefix(call));
            if let Some((module, _)) = literal.and_then(|rest| rest.split_once('"')) {
                let _ = write!(test.says, "\n{module}");
            }
        }
    }
    assert!(found.len() > 500, "the tests are where they are looked for");
    found
}

/// `/// says`, `#[test]`, `fn name`, in whatever order the first two stand.
fn rust(file: &str, text: &str, found: &mut Vec<Test>) {
    let (mut says, mut is_test) = (String::new(), false);
    for line in text.lines().map(str::trim) {
        if let Some(doc) = line.strip_prefix("///") {
            says.push_str(doc);
            says.push('\n');
        } else if line.starts_with("#[") {
            is_test |= line == "#[test]" || line.starts_with("#[tokio::test");
        } else if line.is_empty() || line.starts_with("//") {
            // Between a doc line and what it documents: nothing changes.
        } else {
            let name = line.split_once("fn ").and_then(|(_, rest)| rest.split(['(', '<']).next());
            if let (true, Some(name)) = (is_test, name) {
                let spelled = name.replace('_', "-");
                found.push(Test { name: format!("{file}: {name}"), says: format!("{says}\n{spelled}") });
            }
            says.clear();
            is_test = false;
        }
    }
}

/// The titles of `test('…'` and `it('…'`.
fn javascript(file: &str, text: &str, found: &mut Vec<Test>) {
    for line in text.lines().map(str::trim) {
        let title = ["test(", "it("].iter().find_map(|call| line.strip_prefix(call));
        let quoted = title.and_then(|rest| rest.strip_prefix(['\'', '"', '`'])?.split(['\'', '"', '`']).next());
        if let Some(title) = quoted {
            found.push(Test { name: format!("{file}: {title}"), says: title.to_owned() });
        }
    }
}

/// Whether a text names an ID: as a word, in a list (`BFF-21/22`; `RFC9700-07, -18`, the second by its end) or in a range
/// (`BFF-12 to BFF-16`, `BFF-12..16`).
fn names(says: &str, id: &str) -> bool {
    let (says, id) = (says.to_ascii_lowercase(), id.to_ascii_lowercase());
    let word = |c: char| c.is_ascii_alphanumeric() || c == '-';
    let whole = says.match_indices(&id).any(|(at, _)| {
        let before = says[..at].chars().next_back();
        let mut after = says[at + id.len()..].chars();
        let ends = match after.next() {
            Some('.') => !after.next().is_some_and(|c| c.is_ascii_digit()),
            // A name goes on after it: `cookie-25-time-is-judged`. An ID of the suite does not end there.
            Some('-') => id.ends_with(|c: char| c.is_ascii_digit()),
            Some(c) => !c.is_ascii_alphanumeric(),
            None => true,
        };
        !before.is_some_and(word) && ends
    });
    whole || in_series(&says, &id) || by_its_end(&says, &id)
}

/// `a-b-c, -d` names `a-b-d` as well: what the ends follow begins like the ID.
fn by_its_end(says: &str, id: &str) -> bool {
    if !says.contains(", -") && !says.contains(",\n -") {
        return false;
    }
    let word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    let (mut whole, mut joined) = ("", false);
    for part in says.split_inclusive([',', ' ', ':', '.', '\n']) {
        let name = part.trim_end_matches(|c| !word(c));
        if joined
            && name.starts_with('-')
            && let Some(beginning) = id.strip_suffix(name)
            && whole.strip_prefix(beginning).is_some_and(|rest| rest.starts_with('-'))
        {
            return true;
        }
        if !name.starts_with('-') && !name.is_empty() {
            whole = name;
        }
        joined = part.ends_with(',') || (joined && name.is_empty());
    }
    false
}

fn in_series(says: &str, id: &str) -> bool {
    let Some((family, number)) = id.rsplit_once('-') else { return false };
    let Ok(number) = number.parse::<u32>() else { return false };
    let stem = format!("{family}-");
    let leading = |text: &str| {
        let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
        digits.parse::<u32>().ok().map(|value| (value, digits.len()))
    };
    says.match_indices(&stem).any(|(at, _)| {
        let mut rest = &says[at + stem.len()..];
        let Some((mut last, length)) = leading(rest) else { return false };
        rest = &rest[length..];
        loop {
            let (range, next) = if let Some(next) = rest.strip_prefix(" to ").or_else(|| rest.strip_prefix("..")) {
                (true, next)
            } else if let Some(next) = rest.strip_prefix('/') {
                (false, next)
            } else {
                return false;
            };
            let next = next.strip_prefix(&stem).unwrap_or(next);
            let Some((value, length)) = leading(next) else { return false };
            if value == number || (range && (last..=value).contains(&number)) {
                return true;
            }
            last = value;
            rest = &next[length..];
        }
    })
}

fn shown_by<'t>(requirement: &Requirement, tests: &'t [Test]) -> Vec<&'t str> {
    tests.iter().filter(|test| names(&test.says, requirement.id)).map(|test| test.name.as_str()).collect()
}

fn table(requirements: &[Requirement], tests: &[Test]) -> String {
    let mut text = String::from(
        "# Requirements, and what shows them\n\n\
         Made by `BLESS=1 cargo test --test requirements` of the IDs in the tests' names and doc lines; a test fails when\n\
         a row of level M is shown by nothing. The prefix of an ID names its source: the BFF draft, RFCs, OWASP ASVS 5.0,\n\
         the OpenID conformance suite's client modules, or our own list for what no standard has.\n\n\
         M: must. M\\*: must where the feature is switched on. S: should. D: to be written down. n/a: does not apply.\n",
    );
    let mut heading = "";
    for requirement in requirements {
        if requirement.heading != heading {
            heading = requirement.heading;
            let _ = write!(text, "\n## {heading}\n\n| ID | level | shown by |\n| --- | --- | --- |\n");
        }
        let shown = shown_by(requirement, tests);
        let mut cell: Vec<String> = requirement.note.iter().map(|note| (*note).to_owned()).collect();
        cell.extend(shown.iter().take(SHOWN).map(|name| format!("`{name}`")));
        if shown.len() > SHOWN {
            cell.push(format!("and {} more", shown.len() - SHOWN));
        }
        let level = requirement.level.replace('*', "\\*");
        let _ = writeln!(text, "| {} | {level} | {} |", requirement.id, cell.join("; "));
    }
    text
}

#[test]
fn every_must_is_shown_by_a_test() {
    let (requirements, tests) = (requirements(), tests());
    let open: Vec<&str> = requirements
        .iter()
        .filter(|row| row.level.starts_with('M') && row.note.is_none() && shown_by(row, &tests).is_empty())
        .map(|row| row.id)
        .collect();
    assert!(open.is_empty(), "{} requirements that nothing shows: {}", open.len(), open.join(" "));
}

#[test]
fn the_table_is_the_one_that_the_tests_make() {
    let made = table(&requirements(), &tests());
    let file = root().join("docs/requirements.md");
    if std::env::var_os("BLESS").is_some() {
        fs::write(&file, &made).unwrap();
    }
    let stands = fs::read_to_string(&file).unwrap_or_default();
    assert!(stands == made, "docs/requirements.md is out of date: BLESS=1 cargo test --test requirements");
}

#[test]
fn no_requirement_is_listed_twice_and_no_note_points_nowhere() {
    let mut seen = BTreeSet::new();
    let requirements = requirements();
    for row in &requirements {
        assert!(seen.insert(row.id), "{} stands twice", row.id);
        for path in row.note.iter().flat_map(|note| note.split(['`', ' '])).filter(|word| word.contains('/')) {
            let path = path.trim_end_matches([',', '.', ';', ':']);
            let is_path =
                ["docs/", "tests/", "deploy/", "src/", "fuzz/", "scripts/"].iter().any(|d| path.starts_with(d));
            let file = path.split('#').next().unwrap();
            assert!(!is_path || root().join(file).exists(), "{}: there is no {file}", row.id);
        }
    }
    let levels: BTreeMap<&str, usize> = requirements.iter().fold(BTreeMap::new(), |mut sum, row| {
        *sum.entry(row.level).or_default() += 1;
        sum
    });
    assert!(levels["M"] > 300, "{levels:?}");
}

#[test]
fn ids_are_found_as_words_in_lists_and_in_ranges() {
    for (says, id, found) in [
        ("BFF-05: a script", "BFF-05", true),
        ("BFF-050", "BFF-05", false),
        ("XBFF-05", "BFF-05", false),
        ("BFF-21/22, WS-01", "BFF-22", true),
        ("BFF-12 to BFF-16: all", "BFF-14", true),
        ("COOKIE-05..07", "COOKIE-06", true),
        ("COOKIE-05..07", "COOKIE-08", false),
        ("ASVS-7.3.1, BFF-11", "ASVS-7.3.1", true),
        ("ASVS-7.3.1", "ASVS-7.3", false),
        ("cookie-25-time-is-judged", "COOKIE-25", true),
        ("oidcc-client-test-missing-iat", "oidcc-client-test-missing-iat", true),
        ("oidcc-client-test-missing-iat", "oidcc-client-test", false),
        ("oidcc-client-test.", "oidcc-client-test", true),
        ("oidcc-client-test-missing-aud, -invalid-aud: no", "oidcc-client-test-invalid-aud", true),
        ("oidcc-client-test-missing-aud,\n -a,\n -invalid-aud", "oidcc-client-test-invalid-aud", true),
        ("oidcc-client-test-missing-aud, -invalid-aud", "fapi2-client-test-invalid-aud", false),
        ("oidcc-client-test-missing-aud, -invalid-aud-as-list", "oidcc-client-test-invalid-aud", false),
        ("RFC9700-07, -18, -19.", "RFC9700-18", true),
        ("RFC9700-07 and -18", "RFC9700-18", false),
    ] {
        assert_eq!(names(says, id), found, "{id} in {says}");
    }
}
