//! What sessions share by the kernel's keyrings (keyrings(7)).

use crate::machine::Machine;
use crate::support_net::child::run;
use crate::support_net::site::Plan;

/// add_key(2) and request_key(2), keyctl_read(3) by their numbers on x86-64, since keyctl(1) is nowhere by default.
const ADD: &str = "import ctypes; print(ctypes.CDLL(None).syscall(248, b'user', b'anns', b'secret', 6, -3))";
const READ: &str = "import ctypes; c = ctypes.CDLL(None).syscall; k = c(250, 10, -3, b'user', b'anns', 0); \
                    b = ctypes.create_string_buffer(64); c(250, 11, k, b, 64); print(b.value.decode() or 'nothing')";

#[test]
fn an_account_finds_no_key_of_anothers_session_nor_one_of_its_own_earlier() {
    let machine = Machine::start_with_keyring("\"any\"", Plan::any());
    let in_one = format!("{ADD}; {READ}");
    let own = run(&mut machine.exec("ann", &["python3", "-c", &in_one])).ok().text();
    assert!(own.ends_with("secret\n"), "a session has a keyring: {own}");
    for other in ["bob", "ann"] {
        assert_eq!(run(&mut machine.exec(other, &["python3", "-c", READ])).ok().text(), "nothing\n", "{other}");
    }
}
