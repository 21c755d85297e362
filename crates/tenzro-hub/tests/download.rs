//! Downloads from a hub that misbehaves.

use std::sync::Mutex;
use std::time::Duration;

use tenzro_hub::{
    DownloadError, FindError, HashState, Hub, HubConfig, Library, LibraryEntry, ModelRef, Progress,
    Tuning,
};
use tenzro_testkit::gguf::pretend_model;
use tenzro_testkit::hub::{Faults, HubStandIn, sha256};
use tokio_util::sync::CancellationToken;

const REPO: &str = "maker/Model-GGUF";
const FILE: &str = "Model-Q4_K_M.gguf";
const RANGE_BYTES: u64 = 64 << 10;

struct Setup {
    hub: HubStandIn,
    home: tempfile::TempDir,
    content: Vec<u8>,
    variables: Vec<(&'static str, String)>,
    progress: Mutex<Vec<Progress>>,
    range_bytes: u64,
}

impl Setup {
    fn new() -> Self {
        let hub = HubStandIn::start();
        let content = pretend_model(1 << 20);
        hub.put(REPO, FILE, content.clone());
        hub.put(REPO, "README.md", b"hello".to_vec());
        let home = tempfile::tempdir().expect("a directory");
        let cache = home.path().join("cache").display().to_string();
        Self {
            variables: vec![
                ("HF_ENDPOINT", hub.endpoint().to_owned()),
                ("HF_HUB_CACHE", cache),
            ],
            hub,
            home,
            content,
            progress: Mutex::default(),
            range_bytes: RANGE_BYTES,
        }
    }

    fn library(&self) -> Library {
        Library::new(self.home.path(), &self.home.path().join("cache"))
    }

    async fn download(&self, reference: &str) -> Result<LibraryEntry, DownloadError> {
        self.download_until(reference, &CancellationToken::new())
            .await
    }

    async fn download_until(
        &self,
        reference: &str,
        cancel: &CancellationToken,
    ) -> Result<LibraryEntry, DownloadError> {
        let mut config = HubConfig::from_variables(|name| {
            let variable = self.variables.iter().find(|(known, _)| *known == name);
            variable.map(|(_, value)| value.clone())
        });
        config.tuning = Tuning {
            parts: 4,
            range_bytes: self.range_bytes,
            stall: Duration::from_millis(300),
            backoff: Duration::from_millis(1),
            failures_max: 4,
        };
        let reference = ModelRef::parse(reference).expect("a reference");
        let sink = |progress| self.progress.lock().expect("not poisoned").push(progress);
        Hub::new(config)
            .download(&self.library(), &reference, &sink, cancel)
            .await
    }

    fn arrived_bytes(&self) -> u64 {
        let progress = self.progress.lock().expect("not poisoned");
        let arrived = progress.iter().map(|step| match step {
            Progress::Downloading { done_bytes, .. } => *done_bytes,
            _ => 0,
        });
        arrived.max().unwrap_or(0)
    }

    fn assert_right(&self, entry: &LibraryEntry) {
        assert_eq!(entry.sha256(), sha256(&self.content));
        assert_eq!(std::fs::read(entry.path()).expect("the file"), self.content);
        assert_eq!(entry.quick_state(), HashState::Unchanged);
    }

    fn files_in_cache(&self) -> Vec<String> {
        let blobs = self
            .home
            .path()
            .join("cache/models--maker--Model-GGUF/blobs");
        let mut names: Vec<String> = std::fs::read_dir(blobs)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }
}

#[tokio::test]
async fn a_model_is_fetched_in_ranges_verified_and_found_by_all_its_names() {
    let setup = Setup::new();
    let entry = setup.download(REPO).await.expect("fetched");
    setup.assert_right(&entry);
    assert_eq!(
        (entry.id.as_str(), entry.context_length),
        ("model", Some(2048))
    );
    assert_eq!(entry.quantization.as_deref(), Some("Q4_K_M"));
    assert_eq!(entry.licence.as_deref(), Some("apache-2.0"));
    assert_eq!(setup.files_in_cache(), [sha256(&setup.content)]);
    let link = std::fs::read_link(entry.path()).expect("a link, as in the standard cache");
    assert!(link.is_relative());

    let library = setup.library();
    for name in ["model", "MODEL", REPO, "maker/Model-GGUF:Q4_K_M", FILE] {
        let found = library.find(name).expect("readable");
        assert_eq!(found.as_ref(), Ok(&entry), "{name}");
    }
    let unknown = library.find("modle").expect("readable");
    assert!(matches!(unknown, Err(FindError::Unknown { nearest, .. }) if nearest == ["model"]));
    assert_eq!(
        library.verify(&entry, |_| true).expect("readable"),
        HashState::Verified
    );

    // A second time nothing is transferred or hashed.
    setup.hub.forget();
    setup.progress.lock().expect("not poisoned").clear();
    setup.download(REPO).await.expect("there");
    assert!(setup.hub.seen().iter().all(|seen| !seen.is_transfer));
    let progress = setup.progress.lock().expect("not poisoned");
    assert!(
        !progress
            .iter()
            .any(|step| matches!(step, Progress::Verifying { .. }))
    );
}

#[tokio::test]
async fn the_token_is_sent_to_the_hub_and_nowhere_else() {
    let mut setup = Setup::new();
    setup.hub.set(Faults {
        token: Some("hf_x".to_owned()),
        ..Faults::default()
    });
    let refused = setup.download(REPO).await;
    assert!(matches!(
        refused,
        Err(DownloadError::Unauthorized {
            had_token: false,
            ..
        })
    ));
    setup.variables.push(("HF_TOKEN", "hf_x".to_owned()));
    setup.download(REPO).await.expect("let in");
    for seen in setup.hub.seen() {
        assert!(
            !(seen.is_transfer && seen.has_token),
            "the token left the hub: {seen:?}"
        );
    }
}

/// Cancels a download when nearly half of the bytes arrived.
async fn stop_halfway(setup: &Setup) {
    let half = setup.content.len() as u64 / 2;
    setup.hub.set(Faults {
        hold_at_bytes: Some(half),
        ..Faults::default()
    });
    let cancel = CancellationToken::new();
    let stopped = {
        let download = setup.download_until(REPO, &cancel);
        tokio::pin!(download);
        loop {
            tokio::select! {
                result = &mut download => break result,
                () = tokio::task::yield_now() => {
                    if setup.arrived_bytes() >= half * 3 / 4 {
                        cancel.cancel();
                    }
                }
            }
        }
    };
    assert!(matches!(stopped, Err(DownloadError::Cancelled)));
    setup.hub.set(Faults::default());
    setup.hub.release();
}

#[tokio::test]
async fn a_stopped_download_goes_on_where_it_ended() {
    let setup = Setup::new();
    stop_halfway(&setup).await;
    setup.hub.forget();
    let entry = setup.download(REPO).await.expect("goes on");
    setup.assert_right(&entry);
    let fetched = setup
        .hub
        .seen()
        .iter()
        .filter(|seen| seen.is_transfer)
        .count();
    let ranges = setup
        .content
        .len()
        .div_ceil(usize::try_from(RANGE_BYTES).expect("small"));
    assert!(fetched < ranges, "{fetched} of {ranges} ranges came again");
}

#[tokio::test]
async fn a_stopped_download_loses_little_of_the_ranges_that_were_under_way() {
    let mut setup = Setup::new();
    setup.content = pretend_model(8 << 20);
    setup.hub.put(REPO, FILE, setup.content.clone());
    setup.range_bytes = 64 << 20;
    stop_halfway(&setup).await;
    setup.hub.forget();
    let entry = setup.download(REPO).await.expect("goes on");
    setup.assert_right(&entry);
    // 3 MiB had arrived, and each part may lose one.
    let seen = setup.hub.seen();
    let range = seen.iter().find_map(|seen| seen.range.as_deref());
    let from = range.and_then(|range| range.strip_prefix("bytes=")?.split('-').next());
    let from: u64 = from.expect("a range").parse().expect("a number");
    assert!(from >= 2 << 20, "it went on at {from}");
}

#[tokio::test]
async fn bad_connections_expired_addresses_and_slow_hubs_are_survived() {
    let faults = [
        Faults {
            broken_off: 5,
            ..Faults::default()
        },
        Faults {
            stalled: 2,
            ..Faults::default()
        },
        Faults {
            signature_uses: Some(3),
            ..Faults::default()
        },
        Faults {
            rate_limited: 3,
            ..Faults::default()
        },
        Faults {
            ignores_ranges: true,
            ..Faults::default()
        },
    ];
    for fault in faults {
        let setup = Setup::new();
        setup.hub.set(fault.clone());
        let entry = setup
            .download(REPO)
            .await
            .unwrap_or_else(|error| panic!("{fault:?}: {error}"));
        setup.assert_right(&entry);
    }
}

#[tokio::test]
async fn what_changes_meanwhile_is_fetched_anew() {
    let setup = Setup::new();
    setup.hub.set(Faults {
        etag_changes_at: Some(6),
        ..Faults::default()
    });
    let entry = setup.download(REPO).await.expect("started over");
    setup.assert_right(&entry);
}

#[tokio::test]
async fn a_flipped_bit_is_caught_and_nothing_is_kept() {
    let setup = Setup::new();
    setup.hub.set(Faults {
        bit_flip: true,
        ..Faults::default()
    });
    let error = setup.download(REPO).await.expect_err("damaged");
    let text = error.to_string();
    assert!(matches!(error, DownloadError::HashMismatch { .. }));
    assert!(
        text.contains(&sha256(&setup.content)),
        "both hashes are shown: {text}"
    );
    assert_eq!(setup.files_in_cache(), Vec::<String>::new());
    assert!(setup.library().list().expect("readable").is_empty());
}

#[tokio::test]
async fn two_downloads_of_one_file_are_one_transfer() {
    let setup = Setup::new();
    let (first, second) = tokio::join!(setup.download(REPO), setup.download(REPO));
    setup.assert_right(&first.expect("fetched"));
    setup.assert_right(&second.expect("shared"));
    assert_eq!(setup.hub.sent_bytes(), setup.content.len() as u64);
}

#[tokio::test]
async fn refusals_say_what_is_wrong() {
    let setup = Setup::new();
    let error = setup.download("maker/Other").await.expect_err("unknown");
    assert!(matches!(error, DownloadError::NotFound { .. }));
    let error = setup
        .download("maker/Model-GGUF:Q8_0")
        .await
        .expect_err("no such tag");
    assert!(matches!(error, DownloadError::NoFile { nearest, .. } if nearest == [FILE]));
    setup.hub.set(Faults {
        gated: true,
        ..Faults::default()
    });
    let error = setup.download(REPO).await.expect_err("gated");
    assert!(matches!(error, DownloadError::Gated { .. }));
    setup.hub.set(Faults {
        rate_limited: 1000,
        ..Faults::default()
    });
    let error = setup.download(REPO).await.expect_err("limited");
    assert!(matches!(error, DownloadError::RateLimited { .. }));
    setup.hub.set(Faults {
        broken_off: 1_000_000,
        stalled: 1_000_000,
        ..Faults::default()
    });
    setup.hub.put(REPO, FILE, pretend_model(100));
    setup.hub.put(REPO, FILE, b"no model at all".to_vec());
    setup.hub.set(Faults::default());
    let error = setup.download(REPO).await.expect_err("no model");
    assert!(matches!(error, DownloadError::NotAModel { .. }));
}

#[tokio::test]
async fn offline_uses_the_cache_and_opens_no_connection() {
    let mut setup = Setup::new();
    let online = setup.download(REPO).await.expect("fetched");
    setup.hub.forget();
    setup.variables.push(("HF_HUB_OFFLINE", "1".to_owned()));
    let offline = setup.download(REPO).await.expect("cached");
    assert_eq!(offline.path(), online.path());
    let missing = setup.download("maker/Else").await;
    assert!(matches!(missing, Err(DownloadError::Offline { .. })));
    assert!(setup.hub.seen().is_empty());
}

#[test]
fn imported_files_are_linked_found_verified_and_removed() {
    let home = tempfile::tempdir().expect("a directory");
    let library = Library::new(home.path(), &home.path().join("cache"));
    let source = home.path().join("My Model.Q8_0.gguf");
    std::fs::write(&source, pretend_model(5000)).expect("written");
    let entry = library.import(&source, None, |_| true).expect("imported");
    assert_eq!(entry.id, "my-model");
    let again = library
        .import(&source, None, |_| true)
        .expect("a second time is fine");
    assert_eq!(entry, again);
    assert_eq!(library.list().expect("readable").len(), 1);

    std::fs::write(entry.path(), pretend_model(6000)).expect("written");
    assert_eq!(entry.quick_state(), HashState::Touched);
    let state = library.verify(&entry, |_| true).expect("readable");
    assert!(matches!(state, HashState::Mismatch { .. }));
    library.remove(&entry).expect("removed");
    assert!(source.exists() && !entry.path().exists());
    assert!(library.list().expect("readable").is_empty());
}
