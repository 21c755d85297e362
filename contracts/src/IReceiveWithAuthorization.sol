// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @title The part of ERC-3009 that payment channels use, with a packed signature as in USDC 2.2.
interface IReceiveWithAuthorization {
    /// @notice Transfers by the signature of `from`; only `to` may call it. See TNZO.
    function receiveWithAuthorization(
        address from,
        address to,
        uint256 value,
        uint256 validAfter,
        uint256 validBefore,
        bytes32 nonce,
        bytes calldata signature
    ) external;
}
