//! Paid inference from end to end: the real binary, a real model and a real chain, with honest, crashing and
//! cheating parties. Names begin with the failure mode that a test is about.

mod cheating_payee;
mod cheating_payer;
mod crash;
mod exit;
mod fake_provider;
mod flood;
mod hand_payer;
mod honest;
mod http;
mod market;
mod secrets;
