//! Uploads on a real file system, without a connection.

use super::*;
use crate::error::Code;

fn order(home: &Path, content: &[u8]) -> Order {
    Order {
        home: home.to_owned(),
        name: "file".to_owned(),
        mode: 0o755,
        digest: Some(sha256(content)),
        body_digest: None,
        encoding: Encoding::Identity,
        offset: 0,
        max_bytes: 1 << 20,
    }
}

fn sha256(content: &[u8]) -> Sha256 {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest(&SHA256, content).as_ref());
    bytes
}

/// Stores `body`, which is whole or breaks off.
async fn store(uploads: &Uploads, order: &Order, body: &[u8], is_whole: bool) -> Result<Stored, Refusal> {
    let turn = uploads.turn(&order.home, &order.name, order.digest.as_ref()).await;
    let (sender, mut receiver) = mpsc::channel(body.len() / 10 + 2);
    for piece in body.chunks(10) {
        sender.send(Chunk::Data(Bytes::copy_from_slice(piece))).await.unwrap();
    }
    if is_whole {
        sender.send(Chunk::End).await.unwrap();
    }
    drop(sender);
    let order = order.clone();
    let (turn, result) = tokio::task::spawn_blocking(move || {
        let result = turn.store(&order, &mut receiver);
        (turn, result)
    })
    .await
    .unwrap();
    turn.finish();
    result
}

fn visible(home: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(home).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.retain(|name| name != ".cache");
    names.sort();
    names
}

fn uploads() -> Uploads {
    Uploads::new(Duration::from_secs(60))
}

#[tokio::test]
async fn a_file_appears_whole_with_its_mode() {
    let home = tempfile::tempdir().unwrap();
    let stored = store(&uploads(), &order(home.path(), b"content"), b"content", true).await.unwrap();
    assert_eq!(stored, Stored { size: 7, sha256: sha256(b"content") });
    assert_eq!(visible(home.path()), ["file"]);
    let path = home.path().join("file");
    assert_eq!(fs::read(&path).unwrap(), b"content");
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o7777, 0o755);
}

#[tokio::test]
async fn a_symlink_in_the_files_place_is_replaced_and_not_followed() {
    let home = tempfile::tempdir().unwrap();
    let precious = home.path().join("precious");
    fs::write(&precious, "precious").unwrap();
    std::os::unix::fs::symlink(&precious, home.path().join("file")).unwrap();
    store(&uploads(), &order(home.path(), b"content"), b"content", true).await.unwrap();
    assert_eq!(fs::read(&precious).unwrap(), b"precious");
    assert!(home.path().join("file").symlink_metadata().unwrap().is_file());
}

#[tokio::test]
async fn a_digest_that_does_not_match_leaves_nothing() {
    let home = tempfile::tempdir().unwrap();
    let refusal = store(&uploads(), &order(home.path(), b"content"), b"CONTENT", true).await.unwrap_err();
    assert_eq!((refusal.status, refusal.error.code), (422, Code::BadRequest));
    let wrong_body = Order { digest: None, body_digest: Some([0; 32]), ..order(home.path(), b"") };
    let refusal = store(&uploads(), &wrong_body, b"content", true).await.unwrap_err();
    assert_eq!((refusal.status, refusal.error.code), (422, Code::BadRequest));
    assert_eq!(visible(home.path()), Vec::<String>::new());
}

#[tokio::test]
async fn a_file_larger_than_allowed_leaves_nothing_however_small_its_body_is() {
    let home = tempfile::tempdir().unwrap();
    let content = vec![0; 2 << 20];
    let bomb = zstd::encode_all(&content[..], 3).unwrap();
    assert!(bomb.len() < 1000);
    let order = Order { encoding: Encoding::Zstd, ..order(home.path(), &content) };
    let refusal = store(&uploads(), &order, &bomb, true).await.unwrap_err();
    assert_eq!((refusal.status, refusal.error.code), (413, Code::BadRequest));
    assert_eq!(visible(home.path()), Vec::<String>::new());
}

#[tokio::test]
async fn a_body_that_is_not_what_its_encoding_says_is_refused() {
    let home = tempfile::tempdir().unwrap();
    for encoding in [Encoding::Zstd, Encoding::Gzip] {
        let order = Order { encoding, ..order(home.path(), b"content") };
        let refusal = store(&uploads(), &order, b"this is neither of them", true).await.unwrap_err();
        assert_eq!((refusal.status, refusal.error.code), (400, Code::BadRequest), "{encoding:?}");
    }
    assert_eq!(visible(home.path()), Vec::<String>::new());
}

#[tokio::test]
async fn a_broken_upload_goes_on_where_it_was() {
    let home = tempfile::tempdir().unwrap();
    let uploads = uploads();
    let order = order(home.path(), b"first and second");
    let refusal = store(&uploads, &order, b"first ", false).await.unwrap_err();
    assert_eq!(refusal.error.code, Code::NetworkLost);
    let turn = uploads.turn(home.path(), "file", order.digest.as_ref()).await;
    assert_eq!(turn.held(), 6);
    turn.finish();
    let rest = Order { offset: 6, ..order.clone() };
    store(&uploads, &rest, b"and second", true).await.unwrap();
    assert_eq!(fs::read(home.path().join("file")).unwrap(), b"first and second");
    assert_eq!(visible(home.path()), ["file"]);
}

#[tokio::test]
async fn an_offset_beyond_what_is_held_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let uploads = uploads();
    let beyond = Order { offset: 3, ..order(home.path(), b"content") };
    assert_eq!(store(&uploads, &beyond, b"tent", true).await.unwrap_err().status, 400);
    store(&uploads, &order(home.path(), b"content"), b"co", false).await.unwrap_err();
    assert_eq!(store(&uploads, &beyond, b"tent", true).await.unwrap_err().status, 400);
}

#[tokio::test(start_paused = true)]
async fn what_is_held_is_gone_when_the_grace_is_over() {
    let home = tempfile::tempdir().unwrap();
    let uploads = uploads();
    store(&uploads, &order(home.path(), b"content"), b"co", false).await.unwrap_err();
    assert_eq!(visible(home.path()).len(), 1);
    tokio::time::sleep(Duration::from_secs(61)).await;
    assert_eq!(visible(home.path()), Vec::<String>::new());
    assert!(uploads.slots.lock().unwrap().is_empty());
}

#[tokio::test]
async fn without_a_grace_or_a_digest_nothing_is_held() {
    let home = tempfile::tempdir().unwrap();
    let content = order(home.path(), b"content");
    store(&Uploads::new(Duration::ZERO), &content, b"co", false).await.unwrap_err();
    store(&uploads(), &Order { digest: None, ..content }, b"co", false).await.unwrap_err();
    assert_eq!(visible(home.path()), Vec::<String>::new());
}

#[tokio::test]
async fn whoever_asks_for_a_part_makes_its_writer_let_go() {
    let home = tempfile::tempdir().unwrap();
    let uploads = uploads();
    let digest = sha256(b"content");
    let first = uploads.turn(home.path(), "file", Some(&digest)).await;
    let mut second = Box::pin(uploads.turn(home.path(), "file", Some(&digest)));
    tokio::select! {
        biased;
        _ = &mut second => panic!("two writers at once"),
        () = first.asked_for() => first.finish(),
    }
    second.await.finish();
    assert!(uploads.slots.lock().unwrap().is_empty());
}

#[tokio::test]
async fn known_content_is_stored_again_without_a_body_and_only_if_it_is_what_it_was() {
    let home = tempfile::tempdir().unwrap();
    let uploads = uploads();
    store(&uploads, &order(home.path(), b"content"), b"content", true).await.unwrap();
    let again = Order { name: "again".to_owned(), mode: 0o600, ..order(home.path(), b"content") };
    let turn = uploads.turn(home.path(), "again", again.digest.as_ref()).await;
    let stored = turn.store_known(&again).unwrap().unwrap();
    turn.finish();
    assert_eq!(stored.size, 7);
    let path = home.path().join("again");
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o7777, 0o600);
    // The first file shares its content with what is kept; somebody writes into it.
    fs::write(home.path().join("file"), "another").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"content");
    let turn = uploads.turn(home.path(), "again", again.digest.as_ref()).await;
    assert_eq!(turn.store_known(&again).unwrap(), None);
    turn.finish();
    assert_eq!(visible(home.path()), ["again", "file"]);
}

#[test]
fn what_an_earlier_server_has_left_is_swept_when_it_is_old() {
    let home = tempfile::tempdir().unwrap();
    let (old, young) = (home.path().join(".tstunnel-part-old"), home.path().join(".tstunnel-part-young"));
    let file = File::create(&old).unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(120)).unwrap();
    File::create(&young).unwrap();
    uploads().sweep(home.path());
    assert!(!old.exists() && young.exists());
}
