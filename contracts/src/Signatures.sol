// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {SignatureChecker} from "@openzeppelin/contracts/utils/cryptography/SignatureChecker.sol";

/// @title Who signed a digest: an account's key, or a contract wallet.
library Signatures {
    /// @notice Whether `signature` is 65 bytes `r, s, v` with a low `s`, by the key of `signer`.
    /// @dev Depends on nothing but its arguments: what holds once holds for ever.
    function isByKey(address signer, bytes32 digest, bytes calldata signature) internal pure returns (bool) {
        (address recovered, ECDSA.RecoverError failure,) = ECDSA.tryRecoverCalldata(digest, signature);
        // The zero address signs nothing: on failure that is what is recovered.
        return failure == ECDSA.RecoverError.NoError && recovered == signer;
    }

    /// @notice Whether `signature` is by the key of `signer`, or accepted by the contract at that address.
    /// @dev The key comes first, and not, as in SignatureChecker, only where the account has no code: an
    /// account may set code later (EIP-7702), and must not be able to take back what its key signed.
    function isValid(address signer, bytes32 digest, bytes calldata signature) internal view returns (bool) {
        return isByKey(signer, digest, signature)
            || SignatureChecker.isValidSignatureNowCalldata(signer, digest, signature);
    }
}
