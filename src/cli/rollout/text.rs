//! The report, for people.

use std::io::{self, Write};

use super::report::{ClockRow, Now, Report, Row, Verdict};
use crate::cli::client::trace::clean;
use crate::policy::denial::Lack;

/// Narrower than this nothing is fitted.
const NARROW: usize = 60;
/// Characters of a name, at least and at most, where a width is to be kept to: a quarter of it.
const NAME: [usize; 2] = [15, 36];
/// Characters of a line of a verdict, at least.
const VERDICT: usize = 15;

/// The width of the terminal on standard output.
pub(super) fn width() -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(io::stdout()).ok()?;
    Some(usize::from(size.ws_col)).filter(|width| *width >= NARROW)
}

/// Writes it, `rows` of each table (0: all); `width` is that of a terminal.
pub(super) fn write(
    out: &mut dyn Write,
    report: &Report,
    rows: usize,
    width: Option<usize>,
) -> io::Result<()> {
    write_head(out, report)?;
    for (title, table) in
        [("tenant", &report.tenants), ("client", &report.clients), ("route", &report.routes)]
    {
        write_table(out, title, table, rows, width)?;
    }
    write_clocks(out, &report.clocks, rows, width)?;
    let ready = |rows: &[Row]| rows.iter().filter(|row| row.verdict == Verdict::Ready).count();
    if !report.clients.is_empty() {
        let (clients, tenants) = (&report.clients, &report.tenants);
        writeln!(
            out,
            "\n{} of {} clients and {} of {} tenants can be enforced today",
            ready(clients),
            clients.len(),
            ready(tenants),
            tenants.len(),
        )?;
        if !report.missing().is_empty() {
            writeln!(out, "but the records are incomplete: see the notes above")?;
        }
    }
    Ok(())
}

fn write_head(out: &mut dyn Write, report: &Report) -> io::Result<()> {
    let read = &report.read;
    let files = clean(&read.files.join(", "));
    match read.first.zip(read.last) {
        Some((first, last)) => {
            writeln!(out, "records from {} to {} ({files})", first.rfc3339(), last.rfc3339())?;
        }
        None => writeln!(out, "no records that count ({files}, {} lines)", read.lines)?,
    }
    if read.bad > 0 {
        let named = clean(&read.bad_lines.join(", "));
        let more = if read.bad > read.bad_lines.len() as u64 { ", …" } else { "" };
        writeln!(out, "note: {} lines could not be read: {named}{more}", read.bad)?;
    }
    if read.suppressed > 0 {
        writeln!(out, "note: the edge could not write {} lines", read.suppressed)?;
    }
    if read.sampled {
        writeln!(out, "note: records of ok were sampled (okSample): counts are estimates")?;
    }
    if report.clients_together {
        writeln!(out, "note: too many clients: those past the limit are counted together")?;
    }
    if report.keys_left_out {
        let note = "note: too many keys: what those past the limit missed counts as not taken up";
        writeln!(out, "{note}")?;
    }
    if report.left_out > 0 {
        writeln!(out, "note: {} records were left out: too many names", report.left_out)?;
    }
    Ok(())
}

fn write_table(
    out: &mut dyn Write,
    title: &str,
    rows: &[Row],
    most: usize,
    width: Option<usize>,
) -> io::Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    let shown = rows.get(..if most == 0 { rows.len() } else { most.min(rows.len()) });
    let mut table = vec![[title, "requests", "pass", "now", "verdict"].map(str::to_owned)];
    table.extend(shown.unwrap_or_default().iter().map(|row| {
        [
            fit(&name(row), width),
            row.requests.to_string(),
            format!("{} %", row.would_pass_percent),
            now(row.now).to_owned(),
            verdict(row),
        ]
    }));
    writeln!(out)?;
    write_columns(out, &table, width)?;
    if rows.len() > table.len() - 1 {
        writeln!(out, "… and {} more, no worse (--rows)", rows.len() + 1 - table.len())?;
    }
    Ok(())
}

/// A row's name: the tenant's of a client goes before it where there is one.
fn name(row: &Row) -> String {
    let text = match (&row.tenant, &row.client, &row.route) {
        (Some(tenant), Some(client), _) if tenant == "default" => client.clone(),
        (Some(tenant), Some(client), _) => format!("{tenant}/{client}"),
        (tenant, _, route) => tenant.as_ref().or(route.as_ref()).cloned().unwrap_or_default(),
    };
    clean(&text)
}

fn fit(name: &str, width: Option<usize>) -> String {
    let [least, most] = NAME;
    match width.map(|width| (width / 4).clamp(least, most)) {
        Some(room) if name.chars().count() > room => {
            name.chars().take(room - 1).chain(['…']).collect()
        }
        Some(_) | None => name.to_owned(),
    }
}

fn now(now: Now) -> &'static str {
    match now {
        Now::Observe => "observe",
        Now::Enforce => "enforce",
        Now::Partly => "partly",
    }
}

/// A verdict in words.
fn verdict(row: &Row) -> String {
    let enforced = row.now == Now::Enforce;
    let mut words = match row.verdict {
        Verdict::Ready if enforced => "enforced".to_owned(),
        Verdict::Ready => "can be enforced today".to_owned(),
        Verdict::TooFew => format!("too few requests to say ({})", row.requests),
        Verdict::NotYet if enforced => "enforced, but".to_owned(),
        Verdict::NotYet => "not yet:".to_owned(),
    };
    let lacks = row.lacks.iter().map(|(name, count)| (*count, lack(name)));
    let bypassed = (row.bypassed > 0).then_some((row.bypassed, "passed by the temporary bypass"));
    for (place, (count, what)) in lacks.chain(bypassed).enumerate() {
        words += if place > 0 || row.verdict != Verdict::NotYet { ", " } else { " " };
        words += &match (place, row.verdict) {
            (0, Verdict::NotYet) => format!("{count} of {} requests {what}", row.requests),
            _ => format!("{count} {what}"),
        };
    }
    if let Some([clients, not_ready]) = row.clients.filter(|[_, not_ready]| *not_ready > 0) {
        words += &format!(" ({not_ready} of {clients} clients)");
    }
    if row.challenged > 0 {
        words += &format!("; {} were asked for a nonce, which it takes up", row.challenged);
    }
    if row.unbound > 0 {
        words += &format!("; {} had an unbound token, which a rule allows", row.unbound);
    }
    words
}

/// What requests lacked.
fn lack(name: &str) -> &'static str {
    match Lack::from_name(name) {
        Some(Lack::Proof) => "had no proof",
        Some(Lack::Nonce) => "had no good nonce, and show no sign of taking one up",
        Some(Lack::GoodProof) | None => "had a faulty proof",
        Some(Lack::Clock) => "had an iat that is too far off",
        Some(Lack::NewProof) => "had a proof that was used before",
        Some(Lack::Key) => "were not sent with the token's key as DPoP",
        Some(Lack::Certificate) => "lacked the token's TLS certificate",
        Some(Lack::Bound) => "had a token that is not bound as demanded",
        Some(Lack::Pkce) => "had no PKCE",
        Some(Lack::RefreshToken) => "had a refresh token that is not known as theirs",
        Some(Lack::Authority) => "were issued a token bound to somebody else",
        Some(Lack::Setting) => "had a token bound by what is switched off",
        Some(Lack::Edge) => "met an edge that was full or had a store down",
    }
}

fn write_clocks(
    out: &mut dyn Write,
    clocks: &[ClockRow],
    most: usize,
    width: Option<usize>,
) -> io::Result<()> {
    if clocks.is_empty() {
        return Ok(());
    }
    let mut table = vec![["clock of", "freshest", "oldest", "refused", "says"].map(str::to_owned)];
    let shown = if most == 0 { clocks.len() } else { most };
    table.extend(clocks.iter().take(shown).map(|row| {
        let name = match row.tenant.as_str() {
            "default" => row.client.clone(),
            tenant => format!("{tenant}/{}", row.client),
        };
        let says = if row.least_seconds < -1.0 {
            format!("ahead by {:.0} s", -row.least_seconds)
        } else if row.least_seconds >= 10.0 {
            format!("behind by {:.0} s, or keeps proofs", row.least_seconds)
        } else {
            "right at times: some of its clocks are behind, or it keeps proofs".to_owned()
        };
        let seconds = |seconds: f64| format!("{seconds:.1} s");
        let (least, most) = (seconds(row.least_seconds), seconds(row.most_seconds));
        [fit(&clean(&name), width), least, most, row.faults.to_string(), says]
    }));
    writeln!(out)?;
    write_columns(out, &table, width)?;
    if clocks.len() > shown {
        writeln!(out, "… and {} more (--rows)", clocks.len() - shown)?;
    }
    Ok(())
}

/// Writes columns: the first and the last two to the left, numbers to the right. The last is broken into
/// lines where there is a width.
fn write_columns(
    out: &mut dyn Write,
    table: &[[String; 5]],
    width: Option<usize>,
) -> io::Result<()> {
    let widest = |column: usize| {
        let cells = table.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or_default()
    };
    let [first, second, third, fourth] = [0, 1, 2, 3].map(widest);
    let before = first + second + third + fourth + 8;
    let room = width.map(|width| width.saturating_sub(before).max(VERDICT));
    for [name, requests, pass, now, last] in table {
        let mut lines = broken(last, room).into_iter();
        let head = lines.next().unwrap_or_default();
        writeln!(out, "{name:first$}  {requests:>second$}  {pass:>third$}  {now:fourth$}  {head}")?;
        for line in lines {
            writeln!(out, "{:before$}{line}", "")?;
        }
    }
    Ok(())
}

/// `text` in lines of at most `room` characters, but for words that are longer.
fn broken(text: &str, room: Option<usize>) -> Vec<String> {
    let Some(room) = room else { return vec![text.to_owned()] };
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let Some(line) = lines.last_mut() else { break };
        if line.is_empty() {
            line.push_str(word);
        } else if line.chars().count() + 1 + word.chars().count() <= room {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::super::read::tests::read_text;
    use super::super::report::Wanted;
    use super::*;

    #[test]
    fn the_table_fits_and_says_what_is_lacking() {
        let line = |client: &str, rest: &str| {
            format!(
                "{{\"ts\":\"2026-11-26T10:00:00.000Z\",\"event\":\"authority.dpop.request\",\
                 \"route\":\"orders\",\"mode\":\"observe\",\"client\":\"{client}\",{rest}}}\n"
            )
        };
        let ok = "\"result\":\"ok\",\"nonce_status\":\"fresh\"";
        let bare = "\"result\":\"observe\",\"lacks\":\"proof\"";
        let unbound = "\"result\":\"observe\",\"lacks\":\"bound_token\"";
        let long = "x".repeat(200);
        let log = line("web", ok).repeat(100)
            + &line("evil\\u001b[31m", ok).repeat(60)
            + &line("app", ok).repeat(115)
            + &line("app", bare).repeat(3)
            + &line("app", unbound).repeat(2)
            + &line(&long, ok).repeat(3)
            + "nonsense\n";
        let wanted = Wanted { min_requests: 50, ..Wanted::default() };
        let (tally, summary) = read_text(&log, &wanted);
        let report = Report::of(&tally, &wanted, summary);
        let text = |width| {
            let mut out = Vec::new();
            write(&mut out, &report, 2, width).unwrap();
            String::from_utf8(out).unwrap()
        };
        let narrow = text(Some(80));
        let outside = narrow.lines().skip_while(|line| !line.is_empty());
        for line in outside {
            assert!(line.chars().count() <= 80, "{line}");
        }
        let whole = text(None);
        let expect =
            "not yet: 3 of 120 requests had no proof, 2 had a token that is not bound as demanded";
        assert!(whole.contains(expect), "{whole}");
        for part in [
            "1 lines could not be read: ",
            "too few requests to say (3)",
            "… and 2 more, no worse (--rows)",
            "(1 of 4 clients)",
            "2 of 4 clients and 0 of 1 tenants can be enforced today\nbut the records are incomplete",
        ] {
            assert!(whole.contains(part), "{part}\n{whole}");
        }
        assert!(!whole.contains('\u{1b}'));
    }
}
