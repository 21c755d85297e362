// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @title Limits of texts, so that nobody can make everybody's node keep much.
library Bounds {
    /// @notice A text has `length` bytes and must have `minimum` to `maximum`.
    /// @param field Name of the parameter.
    error InvalidLength(string field, uint256 length, uint256 minimum, uint256 maximum);

    /// @notice Reverts unless `text` has `minimum` to `maximum` bytes.
    function check(
        string calldata text,
        string memory field,
        uint256 minimum,
        uint256 maximum
    ) internal pure {
        uint256 length = bytes(text).length;
        require(length >= minimum && length <= maximum, InvalidLength(field, length, minimum, maximum));
    }
}
