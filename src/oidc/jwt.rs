//! Compact JWS (RFC 7515): the only constructor of verified claims.

/// A signature algorithm that an operator may pin (`id_token_alg`). `none` and the symmetric ones are not in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Algorithm {
    Rs256,
    Rs384,
    Rs512,
    Ps256,
    Ps384,
    Ps512,
    Es256,
    Es384,
    EdDsa,
}
