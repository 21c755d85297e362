//! The conversation at a terminal: a real one, on whose other end the test sits.

use std::fs::File;
use std::io::{Read, Write};
use std::process::{Child, Command};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

use super::Home;
use super::channels::market;

/// Far longer than an answer of the test model takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// A command at a terminal of its own.
struct Terminal {
    keyboard: File,
    screen: Receiver<Vec<u8>>,
    /// What came since the last text that was waited for.
    unread: String,
    child: Child,
}

impl Terminal {
    /// `terminal` names its kind, as in the variable TERM.
    fn start(command: &Command, terminal: &str) -> Self {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY;
        let ours = openpt(flags).expect("a terminal");
        grantpt(&ours).expect("granted");
        unlockpt(&ours).expect("unlocked");
        let name = ptsname(&ours, Vec::new()).expect("a name");
        let theirs = rustix::fs::open(name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty());
        let theirs = File::from(theirs.expect("the other end"));
        let again = || theirs.try_clone().expect("a descriptor");
        // Makes the terminal the controlling one, so that Ctrl-C is a signal.
        let mut session = Command::new("setsid");
        session
            .args(["--ctty", "--wait"])
            .arg(command.get_program())
            .args(command.get_args())
            .env_clear()
            .envs(command.get_envs().filter_map(|(k, v)| Some((k, v?))))
            .env("TERM", terminal)
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .stdin(again())
            .stdout(again())
            .stderr(again());
        let child = session.spawn().expect("setsid of util-linux");
        let keyboard = File::from(ours);
        let mut output = keyboard.try_clone().expect("a descriptor");
        let (sender, screen) = channel();
        // Ends when the last process at the terminal has closed it.
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count) = output.read(&mut buffer) {
                if sender.send(buffer[..count].to_vec()).is_err() {
                    break;
                }
            }
        });
        Self {
            keyboard,
            screen,
            unread: String::new(),
            child,
        }
    }

    /// Presses the keys.
    fn press(&mut self, keys: &str) {
        let pressed = self.keyboard.write_all(keys.as_bytes());
        pressed.expect("the terminal is open");
    }

    /// Enters a line at the prompt.
    fn enter(&mut self, line: &str) {
        self.wait_for(">>> ");
        self.press(line);
        self.press("\r");
    }

    /// All that is shown up to and with the text.
    fn wait_for(&mut self, text: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self.unread.find(text) {
                let rest = self.unread.split_off(at + text.len());
                return std::mem::replace(&mut self.unread, rest);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match self.screen.recv_timeout(left) {
                Ok(bytes) => self.unread.push_str(&String::from_utf8_lossy(&bytes)),
                Err(error) => panic!("{error} while waiting for {text:?} after {:?}", self.unread),
            }
        }
    }

    fn exit_code(mut self) -> Option<i32> {
        drop(self.keyboard);
        self.child.wait().expect("it ends").code()
    }
}

#[test]
fn a_conversation_with_all_its_commands_is_kept_and_taken_up_again() {
    let home = Home::with_model();
    home.serve(&["--ctx-size", "1024"]);
    let chat = home.command(&["chat", "--model", "smollm2-135m", "--temperature", "0"]);

    let mut terminal = Terminal::start(&chat, "xterm");
    terminal.enter("What is the capital of France? One word.");
    terminal.wait_for("Paris");
    let footer = terminal.wait_for("free (local)");
    assert!(footer.contains("tok/s"), "{footer}");
    terminal.enter("/cost");
    let cost = terminal.wait_for("0 TNZO");
    assert!(
        cost.contains("tokens in") && cost.contains("tokens out"),
        "{cost}"
    );
    let file = home.path().join("saved.md");
    terminal.enter(&format!("/save {}", file.display()));
    terminal.wait_for("written to");
    let saved = std::fs::read_to_string(&file).expect("written");
    assert!(saved.contains("## user\n\nWhat is the capital"), "{saved}");
    terminal.enter("/nonsense");
    terminal.wait_for("hint:");

    // A stopped answer leaves the session as it was, and the terminal usable.
    terminal.enter("Write a very long story about a dragon.");
    terminal.wait_for("dragon.");
    terminal.wait_for(" the ");
    terminal.press("\x03");
    terminal.wait_for("this turn is not kept");
    terminal.enter(&format!("/save {}", file.display()));
    terminal.wait_for("written to");
    assert_eq!(saved, std::fs::read_to_string(&file).expect("written"));
    terminal.wait_for(">>> ");
    terminal.press("half a line\x03");
    terminal.wait_for("half a line");
    terminal.enter("/model");
    terminal.wait_for("smollm2-135m\r\n");
    terminal.enter("/system Answer in one word.");
    terminal.wait_for("system prompt set");
    terminal.enter("/new");
    terminal.wait_for("a new session");
    terminal.enter("/exit");
    assert_eq!(terminal.exit_code(), Some(0));

    // On a terminal that cannot move its cursor lines are read by the system.
    let mut terminal = Terminal::start(&chat, "dumb");
    terminal.enter("/history");
    terminal.wait_for("/history");
    let shown = terminal.wait_for("What is the capital of France?");
    let id = shown
        .split_whitespace()
        .next()
        .expect("the id of the session");
    terminal.enter(&format!("/load {id}"));
    terminal.wait_for("Paris");
    terminal.enter("/load ../../etc/passwd");
    terminal.wait_for("error:");
    terminal.wait_for(">>> ");
    // Ctrl-C clears the line and stays, Ctrl-D leaves.
    terminal.press("half a line\x03/help\r");
    terminal.wait_for("/history      past sessions");
    terminal.wait_for(">>> ");
    terminal.press("\x04");
    assert_eq!(terminal.exit_code(), Some(0));
}

#[test]
fn a_paid_conversation_says_what_it_cost_and_a_stopped_answer_costs_no_more() {
    let (provider, consumer) = market();
    let chat = consumer.command(&["chat", "--model", "smollm2-135m", "--temperature", "0"]);
    let mut terminal = Terminal::start(&chat, "xterm");
    terminal.enter("What is the capital of France? One word.");
    terminal.wait_for("Paris");
    let footer = terminal.wait_for(" TNZO · 0x");
    let cost = footer.rsplit(' ').nth(3).expect("an amount").to_owned();
    let cost = format!("{cost} TNZO: to 0x");
    terminal.enter("/cost");
    let shown = terminal.wait_for(&cost);
    assert!(shown.contains("tokens out, "), "{shown}");

    terminal.enter("Write a very long story about a dragon.");
    terminal.wait_for("dragon.");
    terminal.wait_for(" the ");
    terminal.press("\x03");
    terminal.wait_for("this turn is not kept; what had arrived may have to be paid");
    terminal.enter("/cost");
    terminal.wait_for(&cost);
    // The session keeps what it cost.
    terminal.enter("/new");
    terminal.enter("/cost");
    terminal.wait_for("0 TNZO: free (local)");
    terminal.enter("/history");
    let history = terminal.wait_for("What is the capital of France?");
    let id = history
        .lines()
        .rev()
        .find_map(|line| line.split_once("  smollm2-135m"))
        .map(|(id, _)| id.trim().to_owned());
    terminal.enter(&format!("/load {}", id.expect("a session")));
    terminal.enter("/cost");
    terminal.wait_for(&cost);
    // The server refuses what is too long, and the conversation goes on as it was.
    terminal.enter(&"apple ".repeat(600));
    terminal.wait_for("maximum context length");
    terminal.enter("/cost");
    terminal.wait_for(&cost);
    terminal.enter("/exit");
    assert_eq!(terminal.exit_code(), Some(0));

    // The story would have filled the context.
    let earned = provider.json(&["provider", "earnings"]);
    let tokens = earned["days"][0]["output_tokens"]
        .as_u64()
        .expect("a count");
    assert!((10..300).contains(&tokens), "{earned}");
}
