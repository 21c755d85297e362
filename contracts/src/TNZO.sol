// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";
import {ERC20Permit} from "@openzeppelin/contracts/token/ERC20/extensions/ERC20Permit.sol";
import {ERC3009} from "@openzeppelin/contracts/token/ERC20/extensions/draft-ERC3009.sol";

import {Signatures} from "./Signatures.sol";

/// @title The token that models are paid and stakes are made in.
/// @notice ERC-20 with 18 decimals and a fixed supply: nobody can mint, burn, pause or freeze. Spending
/// can be allowed by signature (ERC-2612), and transfers can be signed by their sender and submitted by
/// anybody (ERC-3009), so that whoever holds TNZO needs no coin for gas.
/// @dev The EIP-712 domain of all signatures is ("Tenzro", "1", chain id, this contract).
///
/// Permit, and ERC-3009 with `v, r, s`, are OpenZeppelin's and take signatures of keys only. The
/// overloads with packed `bytes`, as in USDC 2.2, also ask contract wallets (ERC-1271).
///
/// `validAfter` and `validBefore` are Unix seconds, both exclusive. OpenZeppelin reads them as block
/// numbers where both have bit 47 set (as seconds: four million years from now).
contract TNZO is ERC20, ERC20Permit, ERC3009 {
    /// @param treasury Gets the whole supply.
    /// @param supply Wei of TNZO that there will ever be.
    constructor(address treasury, uint256 supply) ERC20("Tenzro", "TNZO") ERC20Permit("Tenzro") {
        _mint(treasury, supply);
    }

    /// @notice Transfers by the sender's signature; anybody may submit it.
    /// @param from Who pays and signed.
    /// @param to Who gets it.
    /// @param value Wei.
    /// @param validAfter Unix seconds after which it can be used.
    /// @param validBefore Unix seconds before which it can be used.
    /// @param nonce Any value that `from` never used before.
    /// @param signature 65 bytes `r, s, v`, or whatever the contract wallet `from` accepts.
    function transferWithAuthorization(
        address from,
        address to,
        uint256 value,
        uint256 validAfter,
        uint256 validBefore,
        bytes32 nonce,
        bytes calldata signature
    ) external {
        bytes32 typeHash = TRANSFER_WITH_AUTHORIZATION_TYPEHASH;
        _check(from, abi.encode(typeHash, from, to, value, validAfter, validBefore, nonce), signature);
        _transferWithAuthorization(from, to, value, validAfter, validBefore, nonce);
    }

    /// @notice As `transferWithAuthorization`, but only the receiver may submit it: a contract that acts
    /// on the transfer cannot be bypassed by somebody who saw the signature first.
    /// @param from Who pays and signed.
    /// @param to Who gets it: the caller.
    /// @param value Wei.
    /// @param validAfter Unix seconds after which it can be used.
    /// @param validBefore Unix seconds before which it can be used.
    /// @param nonce Any value that `from` never used before.
    /// @param signature 65 bytes `r, s, v`, or whatever the contract wallet `from` accepts.
    function receiveWithAuthorization(
        address from,
        address to,
        uint256 value,
        uint256 validAfter,
        uint256 validBefore,
        bytes32 nonce,
        bytes calldata signature
    ) external {
        bytes32 typeHash = RECEIVE_WITH_AUTHORIZATION_TYPEHASH;
        _check(from, abi.encode(typeHash, from, to, value, validAfter, validBefore, nonce), signature);
        require(to == _msgSender(), ERC20InvalidReceiver(to));
        _transferWithAuthorization(from, to, value, validAfter, validBefore, nonce);
    }

    /// @notice Makes an authorization that was signed but not used worthless.
    /// @param authorizer Who signed both.
    /// @param nonce Of the authorization.
    /// @param signature 65 bytes `r, s, v`, or whatever the contract wallet `authorizer` accepts.
    function cancelAuthorization(address authorizer, bytes32 nonce, bytes calldata signature) external {
        _check(authorizer, abi.encode(CANCEL_AUTHORIZATION_TYPEHASH, authorizer, nonce), signature);
        _cancelAuthorization(authorizer, nonce);
    }

    function _check(address signer, bytes memory message, bytes calldata signature) private view {
        bytes32 digest = _hashTypedDataV4(keccak256(message));
        require(Signatures.isValid(signer, digest, signature), ERC3009InvalidSignature());
    }
}
